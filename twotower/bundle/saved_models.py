"""The SavedModels of a bundle: query tower, item tower, and retrieval from raw features to ids.

They hold plain variables, lookup tables and TensorFlow operations, so that they load in a process
that has TensorFlow and nothing of this package. Call their signature, not a Keras `predict`:

    model = tf.saved_model.load("bundle/retrieve").signatures["serving_default"]
    answer = model(history=..., k=tf.constant(10), exclude=tf.constant([[""]]))

Every signature raises `InvalidArgumentError` for inputs with different numbers of rows, and for
vectors that are not finite.
"""

import contextlib
import itertools
import pathlib
from collections.abc import Callable

import numpy as np

from twotower.bundle.manifest import state_version
from twotower.tf import tf
from twotower.towers.dense import Tower

EXACT, SCANN = "retrieve", "retrieve_scann"


def save_tower(tower: Tower, directory: pathlib.Path, model_version: str) -> None:
    """Raw inputs -> `embedding` `[batch_size, dim]`.

    `model_version` of the loaded model names its training by 16 hex digits, to be compared with
    that of an index. A tower with a history has three more signatures, for sessions. `begin` also
    gives `state_...`. `step` takes these and the inputs of one event, `[batch_size]`, and gives the
    state and the embedding after the event; it refuses a state of another training. `check` takes a
    state and gives, for each part, which rows are valid.
    """
    with _served(tower) as module:
        module.model_version = tf.Variable(model_version, trainable=False)

        @tf.function(autograph=False)
        def embed(**raw):
            with tf.control_dependencies(_same_rows(tower, raw)):
                return {"embedding": _finite(tower.embed(raw))}

        specs = {spec.name: spec.spec for spec in tower.inputs}
        signatures = {"serving_default": embed.get_concrete_function(**specs)}
        if any(hasattr(feature, "step") for feature in tower.features):
            signatures |= _session_signatures(tower, specs, state_version(model_version))
        tf.saved_model.save(module, str(directory), signatures)


def _same_rows(tower: Tower, inputs: dict[str, tf.Tensor]) -> list[tf.Operation]:
    """Asserts that every input has one row per query, and that a history's times and ratings have
    one column per event. Else some operations would broadcast a single row to all queries."""
    names = sorted(inputs, key=lambda name: (inputs[name].dtype.name, name))
    groups = itertools.groupby(names, key=lambda name: inputs[name].dtype)
    # One op reads the shapes of all inputs of a type, and a fixed few ops compare them: a request
    # pays for each op.
    shapes = [shape for _, group in groups for shape in tf.shape_n([inputs[n] for n in group])]
    ends = np.cumsum([inputs[name].shape.rank for name in names])
    first = {name: end - inputs[name].shape.rank for name, end in zip(names, ends)}
    equal = [(first[name], 0) for name in names[1:]]
    for feature in tower.features:
        events = [spec.name for spec in feature.inputs if inputs[spec.name].shape.rank == 2]
        if any(spec.shape == (None,) for spec in feature.inputs):
            equal += [(first[name] + 1, first[events[0]] + 1) for name in events[1:]]
    if not equal:
        return []
    sizes = tf.concat(shapes, 0)
    left, right = (tf.gather(sizes, indices) for indices in zip(*equal))
    message = f"inputs have a row a query, histories a column an event; the shapes of {names} are"
    return [_assert(tf.reduce_all(left == right), message, sizes)]


def _assert(condition: tf.Tensor, *data) -> tf.Operation:
    """An op that fails with `data` unless the condition holds. Not tf.debugging's, whose tf.cond
    takes more small ops than the check."""
    return tf.raw_ops.Assert(condition=condition, data=list(data), summarize=50)


def _finite(vectors: tf.Tensor) -> tf.Tensor:
    """The vectors, or an error if one is not finite. A NaN score is not larger than -inf, so such a
    query would silently get an empty answer."""
    message = "a vector is not finite; look for NaN or infinity in the inputs or a session's state"
    return tf.debugging.check_numerics(vectors, message)


def _session_signatures(tower: Tower, specs: dict[str, tf.TensorSpec], version: int) -> dict:
    """`begin`, `step` and `check` of a tower."""

    number = tf.constant(version, tf.int64)

    def answer(state, embedding):
        state = state | {"version": tf.fill(tf.shape(embedding)[:1], number)}
        state = {f"state_{name}": value for name, value in state.items()}
        return state | {"embedding": _finite(embedding)}

    def parts(inputs):
        return {n[len("state_") :]: v for n, v in inputs.items() if n.startswith("state_")}

    @tf.function(autograph=False)
    def begin(**raw):
        with tf.control_dependencies(_same_rows(tower, raw)):
            return answer(*tower.begin(raw))

    @tf.function(autograph=False)
    def step(**inputs):
        state = parts(inputs)
        same = _assert(
            tf.reduce_all(state.pop("version") == number),
            "this session's state is of another training: begin a new one from its history.",
        )
        with tf.control_dependencies([same, *_same_rows(tower, inputs)]):
            state = {name: tf.identity(value) for name, value in state.items()}
            raw = {name: tf.identity(inputs[name]) for name in specs}
        return answer(*tower.step(state, raw))

    @tf.function(autograph=False)
    def check(**states):
        state = parts(states)
        right = {"version": state.pop("version") == number} | tower.check(state)
        return {f"state_{name}": rows for name, rows in right.items()}

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
    return {
        "begin": first,
        "step": step.get_concrete_function(**specs | of_event | states),
        "check": check.get_concrete_function(**states),
    }


def save_retrieve(
    tower: Tower, ids: np.ndarray, vectors: np.ndarray, directory: pathlib.Path
) -> None:
    """Raw query inputs, `k` and `exclude` -> ids, scores and counts, by exact search among
    `vectors` `[num_items, dim]` of the items `ids` `[num_items]`."""
    vectors = tf.Variable(vectors, trainable=False)
    _save_search(tower, ids, _exact(vectors), directory, [vectors])


def save_retrieve_scann(
    tower: Tower,
    ids: np.ndarray,
    vectors: np.ndarray,
    make_layer: Callable,
    directory: pathlib.Path,
) -> None:
    """The same through the TFRS ScaNN layer; exact where ScaNN cuts an answer short.

    ScaNN silently finds fewer than `k` items when `k` plus the exclusions exceed its
    reordering candidates, or the items in the partitions that it looks into. A query for which
    fewer than `k` are left is answered by the exact product instead.

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
        num_queries, num_excluded = tf.unstack(tf.shape(excluded))
        fetch = tf.minimum(k + num_excluded, len(ids))

        def approximate():
            scores, found = scann(queries, k=fetch)
            # Looks up each item found among its row's sorted exclusions. (To compare all with all
            # takes gigabytes for a batch of long histories.)
            ascending = -tf.math.top_k(-excluded, num_excluded).values
            before = tf.raw_ops.LowerBound(sorted_inputs=ascending, values=found)
            hit = before < tf.raw_ops.UpperBound(sorted_inputs=ascending, values=found)
            # Short rows end in NaN.
            scores = tf.where(hit | tf.math.is_nan(scores), -np.inf, scores)
            scores, order = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
            return scores, tf.gather(found, order, batch_dims=1)

        def nothing():
            return tf.fill([num_queries, k], -np.inf), tf.zeros([num_queries, k], tf.int32)

        # ScaNN refuses an empty batch.
        fits_scann = (fetch <= limit) & (num_queries > 0)
        scores, found = tf.cond(fits_scann, approximate, nothing)
        is_short = (tf.shape(scores)[1] < k) | (tf.reduce_min(scores, 1) == -np.inf)

        def completed():
            short = tf.where(is_short)  # [num_short, 1]
            # `gather_nd` refuses exclusions without a column.
            of_short = [tf.gather(values, short[:, 0]) for values in (queries, excluded)]
            few = exact(of_short[0], k, of_short[1])
            wider = [[0, 0], [0, k - tf.shape(scores)[1]]]
            return tuple(
                tf.tensor_scatter_nd_update(tf.pad(old, wider), short, new)
                for old, new in zip((scores, found), few)
            )

        return tf.cond(tf.reduce_any(is_short), completed, lambda: (scores, found))

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
        module.contents = [
            fixed.enter_context(content.fix()) for content in contents if content is not None
        ]
        yield module


def _exact(vectors: tf.Variable) -> Callable:
    """Exact search as `_save_search` takes it: scores and rows, both `[batch_size, k]`."""

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
        return tuple(tf.math.top_k(scores, k))

    return search


def _save_search(tower: Tower, ids: np.ndarray, search: Callable, directory, uses: list) -> None:
    """Saves signatures that call `search(queries, k, excluded rows)`, which uses `uses`.

    `serving_default` takes one `k`, and `batched` one for each query, `[batch_size]`, so that
    requests can be joined; both give as many columns as the largest `k`.
    """
    ids = tf.constant(ids, tf.string)
    initializer = tf.lookup.KeyValueTensorInitializer(ids, tf.range(len(ids)))
    rows_of, ids = tf.lookup.StaticHashTable(initializer, -1), tf.Variable(ids, trainable=False)

    @tf.function(autograph=False)
    def retrieve(k, exclude, **raw):
        per_query = raw | {"exclude": exclude} | ({"k": k} if k.shape.rank else {})
        positive = _assert(tf.reduce_all(k >= 1), "k must be at least 1.", k)
        with tf.control_dependencies([positive, *_same_rows(tower, per_query)]):
            queries = _finite(tower.embed(raw))
        # 1 for an empty batch.
        most = tf.reduce_max(tf.concat([k, [1]], 0)) if k.shape.rank else k
        most = tf.minimum(most, ids.shape[0])
        scores, rows = search(queries, most, rows_of.lookup(exclude))
        if k.shape.rank:
            scores = tf.where(tf.range(most) < k[:, None], scores, -np.inf)
        filled = scores > -np.inf
        return {
            "ids": tf.where(filled, tf.gather(ids, rows), ""),
            "scores": scores,
            "counts": tf.reduce_sum(tf.cast(filled, tf.int32), 1),
        }

    specs = {spec.name: spec.spec for spec in tower.inputs}
    specs["exclude"] = tf.TensorSpec([None, None], tf.string, "exclude")
    with _served(tower) as module:
        module.searched = [rows_of, ids, *uses]
        signatures = {
            name: retrieve.get_concrete_function(k=tf.TensorSpec(shape, tf.int32, "k"), **specs)
            for name, shape in (("serving_default", []), ("batched", [None]))
        }
        tf.saved_model.save(module, str(directory), signatures)
