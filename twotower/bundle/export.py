"""From a training to a bundle, and from a bundle back to the weights of a further training."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from absl import logging

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import LINEAGE, BundleError, write_manifest
from twotower.bundle.provenance import provenance
from twotower.bundle.saved_models import (
    EXACT,
    SCANN,
    save_retrieve,
    save_retrieve_scann,
    save_tower,
)
from twotower.retrieval import build, tuning
from twotower.retrieval.backends import scann_index
from twotower.retrieval.base import Retriever
from twotower.storage import paths
from twotower.tf import tf
from twotower.towers.dense import Tower
from twotower.training.trainer import Training

# Share of the true top 100 that an index must find on sample queries. The layer aims higher: it
# is trained anew with the parameters that the other form was tuned with.
RECALL_TARGET, SCANN_TARGET = 0.995, 0.997


def export(
    training: Training,
    directory: str | pathlib.Path,
    extra: dict | None = None,
    scann: bool = False,
) -> Bundle:
    """Writes the bundle of a training: towers, vectors, retrieval, manifest.

    The bundle is written to a temporary folder, which then replaces `directory`: an
    interrupted export leaves what was there before. `add_index` fills `index/`.

    Args:
        training: With the weights to export.
        directory: The bundle's folder. A bundle that is there is replaced, with its indexes.
        extra: Further entries of the manifest, such as flags and validation metrics.
        scann: Whether to write `retrieve_scann/`, too, which takes longer than all the rest.

    Raises:
        ImportError: `scann` is set and ScaNN is not installed.
        ValueError: Vectors that are not finite; or a folder that holds anything else, that cannot
            be moved (see `replacing`), or that TensorFlow would not find again (`paths.literal`).
    """
    directory = paths.literal(directory)
    dataset, split = training.dataset, training.split
    queries, items = training.model.query_tower, training.model.item_tower
    keys = split.candidates
    vectors = training.item_vectors(keys)
    if not np.isfinite(vectors).all():
        raise ValueError("the item tower gives NaN or infinite vectors; training diverged.")
    catalogue = dataset.items.drop(
        columns=[
            name for name in dataset.items if isinstance(dataset.items[name].iloc[0], np.ndarray)
        ]
    )
    version = model_version(training, vectors)
    with build.replacing(directory, "manifest.json") as folder:
        # Like the queries to come: what indexes are tuned on, here and by build_index.py.
        sample = _sample_queries(training)
        write_parts(folder, version, queries, items, catalogue, keys, vectors, sample, scann)
        _save_weights(training, folder / "training")
        lineage = training.lineage()
        if lineage.rows is not None:
            np.save(folder / LINEAGE, lineage.rows)
        manifest = {
            "model_version": version,
            "dim": int(vectors.shape[1]),
            "metric": "dot",
            "num_items": len(keys),
            "query_inputs": _signature(queries),
            "item_inputs": _signature(items),
            "dataset": dataset.name,
            "dataset_reading": dict(dataset.reading),
            "dataset_fingerprint": dataset.fingerprint(),
            "protocol": split.protocol,
            "part": split.part,
            "refit": split.part == "test",
            "split_seed": split.seed,
            "ancestors": lineage.ancestors,
            "recipe": training.recipe.to_json(),
            **provenance(),
            **(extra or {}),
        }
        write_manifest(folder, manifest)
    return Bundle(directory, verify=False)


def write_parts(
    folder: pathlib.Path,
    version: str,
    queries: Tower,
    items: Tower,
    catalogue: pd.DataFrame,
    keys: np.ndarray,
    vectors: np.ndarray,
    sample: np.ndarray,
    scann: bool,
) -> None:
    """Writes the towers, the items and the retrieval of a bundle into its folder.

    Args:
        folder: An empty one.
        version: Names the training.
        queries: The query tower; `retrieve` needs its `inputs`, `embed`, `weights` and `features`.
        items: The item tower, likewise.
        catalogue: All items, row = key.
        keys: `[num_items]`, items that may be answered.
        vectors: `[num_items, dim]` float32, of the items `keys`.
        sample: `[num_queries, dim]` float32, queries to tune indexes on.
        scann: Whether to write `retrieve_scann/`, too.
    """
    ids = catalogue["item_id"].to_numpy(object)[keys]
    (folder / "items").mkdir()
    for name, array in (("keys", keys), ("vectors", vectors), ("sample_queries", sample)):
        np.save(folder / "items" / f"{name}.npy", array)
    catalogue.to_parquet(folder / "items" / "catalogue.parquet", index=False)
    save_tower(queries, folder / "query_tower", version)
    save_tower(items, folder / "item_tower", version)
    save_retrieve(queries, ids, vectors, folder / EXACT)
    if not scann:
        return
    config = _tuned_scann(keys, vectors, sample)
    save_retrieve_scann(
        queries,
        ids,
        vectors,
        lambda rows, values: (
            scann_index.make_tfrs_layer(config, rows, values),
            config.num_reordering_candidates,
        ),
        folder / SCANN,
    )


def _sample_queries(training: Training, count: int = 500) -> np.ndarray:
    """Vectors of some of the split's queries; their targets are not looked at. Indexes are tuned
    on queries and not on items, which lie elsewhere."""
    cases = training.split.cases
    rows = np.linspace(0, len(cases) - 1, min(count, len(cases))).astype(np.int64)
    return training.query_vectors(cases.take(rows))


def _log_tuned(name: str, found: dict) -> None:
    """Logs how close an index comes to exact search."""
    k, num_items = found["k"], found["num_items"]
    logging.info(
        "%s finds %.4f of the exact top %d of %d items", name, found["recall"], k, num_items
    )


def _tuned_scann(keys, vectors, queries: np.ndarray) -> scann_index.ScannConfig:
    """Parameters for the layer, which answers no more than its reordering candidates: those stay
    as many as the size suggests, which costs time and no recall."""
    index = scann_index.ScannIndex().build(keys, vectors)
    candidates = index.config.num_reordering_candidates
    _log_tuned("retrieve_scann", tuning.tune(index, queries, min(100, len(keys)), SCANN_TARGET))
    candidates = max(candidates, index.config.num_reordering_candidates)
    return dataclasses.replace(index.config, num_reordering_candidates=candidates)


def add_index(bundle: Bundle, name: str, config: build.IndexConfig) -> Retriever:
    """Builds an index over the bundle's vectors, saves it as `index/<name>/`, and returns it.

    Args:
        bundle: Where to.
        name: Plain name of the index; an index of that name is replaced.
        config: Which index; where its parameters name no search effort, that is tuned on the
            bundle's sample queries.

    Raises:
        ValueError: A name with a path in it.
        BundleError: Damaged vectors, or another bundle has replaced this one before the index was
            finished. No index is added then.
    """
    paths.require_plain_name(name, "an index", "'hnsw' or 'small'")
    bundle.require_in_place()
    try:
        with build.replacing(bundle.directory / "index" / name, "index.json") as folder:
            retriever = bundle.read(
                "items",
                lambda _: build.build(config, np.asarray(bundle.keys), np.asarray(bundle.vectors)),
                verify=True,
            )
            k = min(100, len(bundle.keys))
            efforts = retriever.efforts(k).keys()
            if efforts and not efforts & config.parameters.keys():
                queries = np.asarray(bundle.sample_queries)
                _log_tuned(name, tuning.tune(retriever, queries, k, RECALL_TARGET))
            build.write(retriever, folder, bundle.model_version)
            bundle.require_in_place()
    except OSError:
        bundle.require_in_place()  # a replaced bundle takes the folder to write to with it
        raise
    return retriever


def model_version(training: Training, vectors: np.ndarray) -> str:
    """Names the items' vectors and the query tower, its weights and what its features do with them:
    16 hex digits of their sha256."""
    digest = hashlib.sha256(np.ascontiguousarray(vectors).tobytes())
    for feature in training.model.query_tower.features:
        digest.update(json.dumps(feature.get_config(), sort_keys=True, default=list).encode())
    for weight in training.model.query_tower.weights:
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()[:16]


def _signature(tower: Tower) -> list[dict]:
    """Name, dtype, shape and missing value of each input; NaN is written as a string for JSON."""
    return [
        {
            "name": spec.name,
            "dtype": spec.dtype,
            "shape": [None, *spec.shape],
            "missing": "NaN" if spec.dtype == "float32" else spec.missing,
        }
        for spec in tower.inputs
    ]


def _paths(part: tf.Module) -> dict[str, tf.Variable]:
    """Weights of a layer by their path in it, such as `blocks/0/norm/gamma`: names that
    depend neither on what else it has nor on how many layers were made before."""
    view, found, seen = tf.train.TrackableView(part), {}, set[int]()
    queue: list[tuple[str, Any]] = [("", part)]
    for path, node in queue:  # the nearest first, so that each has its shortest path
        if isinstance(node, tf.Variable):
            found[path] = node
            continue
        for name, child in view.children(node).items():
            if id(child) not in seen:
                seen.add(id(child))
                queue.append((f"{path}/{name}".strip("/"), child))
    of_part = {id(weight) for weight in part.weights}
    return {path: weight for path, weight in found.items() if id(weight) in of_part}


def _parts(training: Training) -> Iterator[tuple[str, dict, list[str]]]:
    """Name, weights by path and vocabulary of each part of the towers; what a history says of its
    items' content are further parts, with vocabularies."""
    for tower in (training.model.query_tower, training.model.item_tower):
        parts: list[Any] = [*tower.features, tower.head]
        for part in parts:
            content = getattr(part, "content", None)
            inner = content.features if content is not None else []
            inner_weights = {id(weight) for feature in inner for weight in feature.weights}
            weights = {path: w for path, w in _paths(part).items() if id(w) not in inner_weights}
            yield f"{tower.name}/{part.name}", weights, getattr(part, "vocabulary", [])
            for feature in inner:
                name = f"{tower.name}/{part.name}/{feature.name}"
                yield name, _paths(feature), getattr(feature, "vocabulary", [])


def _save_weights(training: Training, folder: pathlib.Path) -> None:
    folder.mkdir()
    weights: dict[str, Any] = {}
    vocabularies: dict[str, list[str]] = {}
    for part, of_part, vocabulary in _parts(training):
        weights |= {f"{part}/{path}": weight.numpy() for path, weight in of_part.items()}
        vocabularies |= {part: vocabulary} if len(vocabulary) else {}
    np.savez(folder / "weights.npz", **weights)
    (folder / "vocabularies.json").write_text(json.dumps(vocabularies))


def warm_start(training: Training, bundle: Bundle, allow_seen: bool = False) -> dict[str, int]:
    """Takes over the weights of an earlier bundle, as for a daily retraining on newer data.

    Embedding tables are matched by id and not by row, so vocabularies may grow, shrink or change
    their order. A new id keeps its initial row.

    Args:
        training: What starts from the bundle's weights.
        bundle: Of an earlier training, which must not have seen the answers to the split's
            questions.
        allow_seen: Accept a bundle that has seen them, or that does not say. Figures on the split's
            questions are then too good, and the new bundle's lineage shows it.

    Returns:
        How many weights were `copied` whole, `matched` by id, and left `fresh` (other sizes).

    Raises:
        BundleError: No weight fits, as from quite another model; or the weights are damaged, or
            another bundle has replaced this one.
        ValueError: The bundle has learned from rows that the split keeps for its questions, as one
            that was refit on its validation rows has; or it does not say which rows those were.
    """
    if not allow_seen:
        advice = (
            "Start from a bundle of older rows, such as the <workdir>/bundle_validation of a "
            "training whose <workdir>/bundle was refit; with allow_seen figures are too good."
        )
        bundle.lineage.require_unseen(training.dataset, training.split, advice)
    counts = bundle.read("training", lambda folder: _take_over(training, folder))
    training.ancestor = bundle.lineage
    return counts


def _take_over(training: Training, folder: pathlib.Path) -> dict[str, int]:
    if not (folder / "weights.npz").is_file():
        raise BundleError(
            f"{folder} has no weights, since it joins several bundles: start from one of those."
        )
    old_vocabularies = json.loads((folder / "vocabularies.json").read_text())
    weights = [
        (part, f"{part}/{path}", weight, vocabulary)
        for part, of_part, vocabulary in _parts(training)
        for path, weight in of_part.items()
    ]
    counts = {"copied": 0, "matched": 0, "fresh": 0}
    with np.load(folder / "weights.npz", allow_pickle=False) as old:
        for part, name, weight, new_ids in weights:
            if name not in old:
                counts["fresh"] += 1
                continue
            values, old_ids = old[name], old_vocabularies.get(part, [])
            # A table of ids has one row for unknown ones, or one more for padding.
            special = weight.shape[0] - len(new_ids) if weight.shape.rank else 0
            by_id = len(new_ids) and special in (1, 2) and special == len(values) - len(old_ids)
            if by_id and values.shape[1:] == weight.shape[1:]:
                weight.assign(_by_id(weight.numpy(), new_ids, values, old_ids))
                counts["matched"] += 1
            elif values.shape == weight.shape:
                weight.assign(values)
                counts["copied"] += 1
            else:
                counts["fresh"] += 1
    if not counts["copied"] + counts["matched"]:
        raise BundleError(f"{folder / 'weights.npz'} shares no weight with this recipe's model.")
    return counts


def _by_id(new: np.ndarray, new_ids: list[str], old: np.ndarray, old_ids: list[str]) -> np.ndarray:
    """The new table with the rows of ids that the old one knows, and its leading special rows."""
    special = len(new) - len(new_ids)  # padding and unknown
    row = pd.Index(old_ids).get_indexer(new_ids)
    new[:special] = old[:special]
    new[special:][row >= 0] = old[special:][row[row >= 0]]
    return new
