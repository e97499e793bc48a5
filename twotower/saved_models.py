"""The SavedModels of a bundle: query tower, item tower, and retrieval from raw features to ids.

They hold plain variables, lookup tables and TensorFlow operations, so that they load in a process
that has TensorFlow and nothing of this package. Call their signature, not a Keras `predict`:

    model = tf.saved_model.load("bundle/retrieve").signatures["serving_default"]
    answer = model(history=..., k=tf.constant(10), exclude=tf.constant([[""]]))
"""

import contextlib
import pathlib
from collections.abc import Callable

import numpy as np

from twotower import require_legacy_keras

require_legacy_keras()
import tensorflow as tf  # noqa: E402

from twotower.bundle import state_version  # noqa: E402
from twotower.towers.dense import Tower  # noqa: E402

EXACT, SCANN = "retrieve", "retrieve_scann"


def save_tower(tower: Tower, directory: pathlib.Path, model_version: str) -> None:
    """Raw inputs -> `embedding` `[batch_size, dim]`.

    The loaded model says its training as `model_version`, to be compared with that of an index:
    16 hex digits. A tower with a history has two more signatures, for sessions: `begin` also gives
    `state_...`, and `step` takes these and the inputs of one event, `[batch_size]`, and gives the
    state and the embedding with that event. A state of another training is refused.
    """
    with _served(tower) as module:
        module.model_version = tf.Variable(model_version, trainable=False)

        @tf.function(autograph=False)
        def embed(**raw):
            return {"embedding": tower.embed(raw)}

        specs = {spec.name: spec.spec for spec in tower.inputs}
        signatures = {"serving_default": embed.get_concrete_function(**specs)}
        if any(hasattr(feature, "step") for feature in tower.features):
            signatures |= _session_signatures(tower, specs, state_version(model_version))
        tf.saved_model.save(module, str(directory), signatures)


def _session_signatures(tower: Tower, specs: dict[str, tf.TensorSpec], version: int) -> dict:
    """`begin` and `step` of a tower."""

    number = tf.constant(version, tf.int64)

    def answer(state, embedding):
        state = state | {"version": tf.fill(tf.shape(embedding)[:1], number)}
        return {f"state_{name}": value for name, value in state.items()} | {"embedding": embedding}

    @tf.function(autograph=False)
    def begin(**raw):
        return answer(*tower.begin(raw))

    @tf.function(autograph=False)
    def step(**inputs):
        state = {n[len("state_") :]: v for n, v in inputs.items() if n.startswith("state_")}
        # Not tf.debugging's, which stands behind a condition: more small ops than the check has.
        same = tf.raw_ops.Assert(
            condition=tf.reduce_all(state.pop("version") == number),
            data=["this session's state is of another training: begin a new one from its history."],
        )
        with tf.control_dependencies([same]):
            state = {name: tf.identity(value) for name, value in state.items()}
        return answer(*tower.step(state, {n: v for n, v in inputs.items() if n in specs}))

    first = begin.get_concrete_function(**specs)
    states = {
        name: tf.TensorSpec([None, *value.shape[1:]], value.dtype, name)
        for name, value in first.structured_outputs.items()
        if name != "embedding"
    }
    of_event = {
        spec.name: tf.TensorSpec([None], spec.dtype, spec.name)
        for feature in tower.features
        if hasattr(feature, "step")
        for spec in feature.inputs
    }
    return {"begin": first, "step": step.get_concrete_function(**specs | of_event | states)}


def save_retrieve(tower: Tower, ids: np.ndarray, vectors: np.ndarray, directory) -> None:
    """Raw query inputs, `k` and `exclude` -> ids, scores and counts, by exact search."""
    vectors = tf.Variable(vectors, trainable=False)
    _save_search(tower, ids, _exact(vectors), directory, [vectors])


def save_retrieve_scann(
    tower: Tower, ids: np.ndarray, vectors: np.ndarray, make_layer: Callable, directory
) -> None:
    """The same through the TFRS ScaNN layer; exact where ScaNN would cut an answer short.

    ScaNN silently answers fewer rows than asked for when `k` plus the exclusions exceed its
    reordering candidates. Such requests are answered by the exact product instead.

    Args:
        tower: The query tower.
        ids: `[num_items]` strings.
        vectors: `[num_items, dim]` float32.
        make_layer: `(identifiers, vectors) -> (tfrs ScaNN layer, its reordering candidates)`.
        directory: Where to.
    """
    rows = tf.range(len(ids), dtype=tf.int32)
    scann, limit = make_layer(rows, tf.constant(vectors))
    vectors = tf.Variable(vectors, trainable=False)
    exact = _exact(vectors)

    def search(queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor):
        fetch = tf.minimum(k + tf.shape(excluded)[1], len(ids))

        def approximate():
            scores, found = scann(queries, k=fetch)
            # Short answers come with NaN scores; an excluded item is one equal to any of its row.
            hit = tf.reduce_any(found[:, :, None] == excluded[:, None, :], 2)
            scores = tf.where(hit | tf.math.is_nan(scores), -np.inf, scores)
            scores, order = tf.math.top_k(scores, tf.minimum(k, fetch))
            return scores, tf.gather(found, order, batch_dims=1)

        return tf.cond(fetch > limit, lambda: exact(queries, k, excluded), approximate)

    _save_search(tower, ids, search, directory, [vectors, scann])


@contextlib.contextmanager
def _served(tower: Tower):
    """Holds what the traced functions use, and not the Keras layers themselves. What is traced
    while it lasts looks the content of past items up."""
    module = tf.Module()
    module.weights = list(tower.weights)
    module.tables = [f.lookup.lookup_table for f in tower.features if hasattr(f, "lookup")]
    with contextlib.ExitStack() as fixed:
        contents = [getattr(feature, "content", None) for feature in tower.features]
        module.contents = [fixed.enter_context(one.fix()) for one in contents if one is not None]
        yield module


def _exact(vectors: tf.Variable) -> Callable:
    def search(queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor):
        scores = tf.linalg.matmul(queries, vectors, transpose_b=True)  # [batch_size, num_items]
        num_items = vectors.shape[0]
        # Row -1 (padding, unknown ids) falls into the first slot, which is cut off.
        mask = tf.math.bincount(
            excluded + 1,
            minlength=num_items + 1,
            maxlength=num_items + 1,
            axis=-1,
            binary_output=True,
        )[:, 1:]
        scores = tf.where(mask > 0, -np.inf, scores)
        return tuple(tf.math.top_k(scores, tf.minimum(k, num_items)))

    return search


def _save_search(tower: Tower, ids: np.ndarray, search: Callable, directory, uses: list) -> None:
    """`retrieve` by `search(queries, k, excluded rows)`, whose variables and layers are `uses`."""
    ids = tf.constant(ids, tf.string)
    initializer = tf.lookup.KeyValueTensorInitializer(ids, tf.range(len(ids)))
    rows_of, ids = tf.lookup.StaticHashTable(initializer, -1), tf.Variable(ids, trainable=False)

    @tf.function(autograph=False)
    def retrieve(k, exclude, **raw):
        with tf.control_dependencies(
            [tf.debugging.assert_positive(k, "k must be at least 1; ask for one item or more.")]
        ):
            queries = tower.embed(raw)
        scores, rows = search(queries, k, rows_of.lookup(exclude))
        filled = scores > -np.inf
        return {
            "ids": tf.where(filled, tf.gather(ids, rows), ""),
            "scores": scores,
            "counts": tf.reduce_sum(tf.cast(filled, tf.int32), 1),
        }

    specs = {spec.name: spec.spec for spec in tower.inputs}
    with _served(tower) as module:
        module.searched = [rows_of, ids, *uses]
        concrete = retrieve.get_concrete_function(
            k=tf.TensorSpec([], tf.int32, "k"),
            exclude=tf.TensorSpec([None, None], tf.string, "exclude"),
            **specs,
        )
        tf.saved_model.save(module, str(directory), {"serving_default": concrete})
