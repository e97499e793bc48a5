"""From a training to a bundle, and indexes for a bundle."""

import dataclasses
import hashlib
import json
import pathlib
import warnings
from typing import Any

import numpy as np
import pandas as pd
from absl import logging

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import LINEAGE, write_manifest
from twotower.bundle.provenance import provenance
from twotower.bundle.saved_models import (
    EXACT,
    SCANN,
    save_retrieve,
    save_retrieve_scann,
    save_tower,
)
from twotower.bundle.weights import save_weights
from twotower.data.lineage import Lineage
from twotower.retrieval import build, tuning
from twotower.retrieval.backends import scann_index
from twotower.retrieval.base import Retriever
from twotower.storage import paths
from twotower.towers.dense import Tower
from twotower.training.training import Training

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
        scann: Whether to write `retrieve_scann/`, too, which takes longer than all the rest. With
            fewer than 16 items it is left out, with a warning.

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
        save_weights(training, folder / "training")
        lineage = training.lineage()
        if lineage.rows is not None:
            np.save(folder / LINEAGE, lineage.rows)
        manifest = _description(training, version, vectors, lineage) | (extra or {})
        write_manifest(folder, manifest)
    return Bundle(directory, verify=False)


def _description(
    training: Training, version: str, vectors: np.ndarray, lineage: Lineage
) -> dict[str, Any]:
    """What the manifest says of the model, the data and the split."""
    dataset, split, model = training.dataset, training.split, training.model
    return {
        "model_version": version,
        "dim": int(vectors.shape[1]),
        "metric": "dot",
        "num_items": len(vectors),
        "query_inputs": _signature(model.query_tower),
        "item_inputs": _signature(model.item_tower),
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
    }


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
    if len(ids) < scann_index.FEWEST_IN_LAYER:
        warnings.warn(
            f"retrieve_scann needs {scann_index.FEWEST_IN_LAYER} items, and there are {len(ids)}: "
            "it is left out. retrieve, which is exact, answers in its place.",
            stacklevel=2,
        )
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
        ValueError: A name with a path in it, or `exact`; or an index that cannot be made.
        BundleError: Damaged vectors, or another bundle has replaced this one before the index was
            finished. No index is added then.
    """
    paths.require_plain_name(name, "an index", "'hnsw' or 'small'")
    if name == "exact":
        raise ValueError("'exact' is search over the bundle's vectors; give another name.")
    build.make(config)  # what cannot be made is refused before anything is read
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
