"""Several bundles as one: their vectors side by side.

A sum of dot products is one dot product,

    sum_m q_m . v_m / M = [q_1, ..., q_M] . [v_1, ..., v_M] / M

so the mean of M models' scores is the score of one model whose vectors are M times as long. Any
index and any bundle can hold such vectors. As far as models of one recipe with different seeds make
different errors, their mean makes smaller ones (Hansen and Salamon, TPAMI 1990).
"""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from twotower.bundle.bundle import Bundle, require_same_entries
from twotower.bundle.export import write_parts
from twotower.bundle.manifest import LINEAGE, write_manifest
from twotower.bundle.provenance import provenance
from twotower.bundle.saved_models import SCANN
from twotower.retrieval import build
from twotower.storage import paths
from twotower.tf import tf
from twotower.towers.features import Input

# Entries of the manifest in which bundles must agree, so that their scores are comparable.
COMMON = (
    "metric",
    "dataset",
    "dataset_fingerprint",
    "protocol",
    "part",
    "refit",
    "split_seed",
    "hidden_items",
)


class SideBySide:
    """Several exported towers as one, with the part of `Tower` that `saved_models` needs.

    Args:
        bundles: Those that the towers come from.
        part: Which tower, `query_tower` or `item_tower`.

    Attributes:
        inputs: Raw inputs of all towers, each once.
        weights: The loaded SavedModels, which hold the variables and tables.
        features: Empty, since a tower of several has no sessions.

    Raises:
        ValueError: Two towers have different inputs of one name.

        tower = SideBySide([Bundle("W0/bundle"), Bundle("W1/bundle")], "query_tower")
        tower.embed({"user_id": tf.constant(["42"])})
    """

    features = ()

    def __init__(self, bundles: Sequence[Bundle], part: str) -> None:
        entries: dict[str, dict] = {}
        for bundle in bundles:
            for entry in bundle.manifest[part.replace("tower", "inputs")]:
                if entries.setdefault(entry["name"], entry) != entry:
                    raise ValueError(
                        f"{bundle.directory}: the input {entry} differs from that of another "
                        f"bundle, {entries[entry['name']]}. One request cannot give both."
                    )
        self.inputs = [
            Input(entry["name"], entry["dtype"], tuple(entry["shape"][1:]))
            for entry in entries.values()
        ]
        self.weights = [
            bundle.read(part, lambda path: tf.saved_model.load(str(paths.literal(path))))
            for bundle in bundles
        ]
        self._embeds = [model.signatures["serving_default"] for model in self.weights]

    def embed(self, raw: dict[str, tf.Tensor]) -> tf.Tensor:
        """Raw inputs -> `[batch_size, sum of dims]`, of length 1 if all towers' vectors are."""
        parts = [
            embed(**{name: raw[name] for name in embed.structured_input_signature[1]})["embedding"]
            for embed in self._embeds
        ]
        return tf.concat(parts, 1) / len(parts) ** 0.5


def side_by_side(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """`[n, dim]` of each model -> `[n, sum of dims]`, whose dot products are the models' mean.

    >>> first, second = np.array([[3.0]]), np.array([[1.0, 2.0]])
    >>> joined = side_by_side([first, second])
    >>> (joined @ joined.T).round(6).tolist()  # (9 + 5) / 2
    [[7.0]]
    """
    return np.concatenate(vectors, axis=1) / len(vectors) ** 0.5


def concatenate(bundles: Sequence[Bundle], directory: str | pathlib.Path) -> Bundle:
    """Writes one bundle whose score is the mean of the scores of several.

    The new bundle lacks only the weights for a warm start and the signatures for sessions. Its
    dimension is the sum of the bundles' dimensions, and a request runs all their query towers.

    Args:
        bundles: Two or more, of different trainings on the same rows with the same candidates.
        directory: The new bundle's folder. An existing bundle is replaced.

    Raises:
        ValueError: Fewer than two bundles, the same one twice, or bundles of different data,
            protocols or items. Or the folder cannot be written (see `replacing`), or holds one of
            the bundles.
        BundleError: A part of a bundle is damaged.
    """
    directory = paths.literal(directory)
    versions = [bundle.model_version for bundle in bundles]
    if len(set(versions)) < 2 or len(set(versions)) < len(versions):
        raise ValueError(f"expected two or more bundles of different trainings; got {versions}.")
    given = [os.path.realpath(bundle.directory) for bundle in bundles]
    if os.path.realpath(directory) in given:
        raise ValueError(f"{directory} is one of the bundles, which would be lost. Give another.")
    advice = "Take bundles of one dataset, protocol and part."
    require_same_entries(bundles, COMMON, advice)
    first = bundles[0]
    for bundle in bundles[1:]:
        if not np.array_equal(bundle.keys, first.keys):
            raise ValueError(
                f"{bundle.directory} and {first.directory} hold different items. Take bundles of "
                "one dataset and protocol."
            )
    towers: list[Any] = [SideBySide(bundles, part) for part in ("query_tower", "item_tower")]
    queries, items = towers
    vectors = side_by_side([np.asarray(bundle.vectors) for bundle in bundles])
    sample = side_by_side([np.asarray(bundle.sample_queries) for bundle in bundles])
    version = hashlib.sha256(vectors.tobytes() + " ".join(versions).encode()).hexdigest()[:16]
    lineages = [rows for bundle in bundles if (rows := bundle.lineage.rows) is not None]
    with build.replacing(directory, "manifest.json") as folder:
        keys = np.asarray(first.keys)
        scann = (first.directory / SCANN).is_dir()
        write_parts(
            folder, version, queries, items, first.catalogue.items, keys, vectors, sample, scann
        )
        if len(lineages) == len(bundles):
            path = folder / LINEAGE
            path.parent.mkdir()
            np.save(path, np.unique(np.concatenate(lineages)))
        manifest = {
            **{name: first.manifest[name] for name in COMMON if name in first.manifest},
            "dataset_reading": first.manifest.get("dataset_reading", {}),
            "model_version": version,
            "dim": int(vectors.shape[1]),
            "num_items": len(keys),
            "query_inputs": _described(queries.inputs, bundles, "query_inputs"),
            "item_inputs": _described(items.inputs, bundles, "item_inputs"),
            "ancestors": versions,
            "recipe": first.manifest["recipe"],
            "recipes": [bundle.manifest["recipe"] for bundle in bundles],
            **provenance(),
        }
        write_manifest(folder, manifest)
    return Bundle(directory, verify=False)


def _described(inputs: list[Input], bundles: Sequence[Bundle], part: str) -> list[dict]:
    """The manifest's entries of these inputs."""
    entries = {entry["name"]: entry for bundle in bundles for entry in bundle.manifest[part]}
    return [entries[spec.name] for spec in inputs]
