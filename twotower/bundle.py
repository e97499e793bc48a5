"""One folder with everything that one training made, and one manifest that holds it together.

A query tower and an index of different trainings answer nonsense without an error. So they are
written together, checked together (sha256 of every file) and loaded together. Layout: DESIGN in
BUILD.md. Nothing in a bundle is ever unpickled.
"""

import functools
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from twotower.data.dataset import Catalogue
from twotower.data.tables import LATEST
from twotower.retrieval import build
from twotower.retrieval.build import sha256

SAME_LENGTH = "every row of the same length (pad with '', NaN or -1)"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class BundleError(ValueError):
    """A bundle that is incomplete, changed, foreign, newer than this code, or mixed up."""


def state_version(model_version: str) -> int:
    """The number by which a session's state knows its model; it fits an int64."""
    return int(model_version, 16) >> 1


def write_manifest(directory: pathlib.Path, manifest: Mapping) -> None:
    """Writes the manifest with the sha256 of every file below `directory`, in one step."""
    files = {
        str(path.relative_to(directory)): sha256(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    temporary = directory / f".{MANIFEST}"
    temporary.write_text(json.dumps({**manifest, "files": files}, indent=1) + "\n")
    os.replace(temporary, directory / MANIFEST)


def read_manifest(directory: str | pathlib.Path) -> dict:
    """The manifest of a bundle, without a look at the other files.

    Raises:
        BundleError: No bundle, or one of a newer format.
    """
    path = pathlib.Path(directory) / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{path} does not exist, so {directory} is no bundle. experiments/train.py writes one "
            "to <workdir>/bundle; was an export interrupted?"
        )
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format_version"]
        manifest["files"], manifest["model_version"], manifest["dim"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not the manifest of a bundle: {error!r}.") from error
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path}: format {version} is newer than this code reads ({FORMAT_VERSION}). "
            "Update twotower, or export the bundle again with this version."
        )
    return manifest


def as_type(name: str, values, dtype: str) -> np.ndarray:
    """Numbers as another type; NaN where there is none stays.

    Raises:
        ValueError: Values that the type does not hold, of which TensorFlow would make others
            (fractions, NaN and large numbers as integers), infinity, or times that are no seconds;
            the message names the row.
    """
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "biufO":
            raise TypeError(f"got {given.dtype}.")
        with np.errstate(all="ignore"):
            numbers = given.astype(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected {dtype}, {SAME_LENGTH}; {error}") from error
    if numbers.dtype.kind == "f":
        wrong, reason = np.isinf(numbers), "numbers are finite, or NaN where there is none."
    else:
        wrong, reason = numbers != given, f"expected {dtype}, -1 where there is none."
        if name.endswith("time") and not wrong.any():
            wrong = (numbers < -LATEST) | (numbers > LATEST)
            reason = "times are seconds; are these milliseconds?"
    if wrong.any():
        place = tuple(np.argwhere(np.atleast_1d(wrong))[0])
        number = np.atleast_1d(given)[place]
        raise ValueError(f"{name}: {reason} Row {place[0]} has {number}.")
    return numbers


class Bundle:
    """A loaded bundle.

    Args:
        directory: The folder.
        verify: Whether to check the sha256 of every file; sizes and presence are always checked
            by the loaders themselves.

    Attributes:
        manifest: The manifest.
        keys: `[num_items]` int64, keys of the items that may be answered.
        vectors: `[num_items, dim]` float32, memory-mapped.

    Raises:
        BundleError: A file is missing, changed, or of another training; the message names it.
    """

    def __init__(self, directory: str | pathlib.Path, verify: bool = True) -> None:
        self.directory = pathlib.Path(directory)
        self.manifest = read_manifest(directory)
        for name, expected in self.manifest["files"].items():
            path = self.directory / name
            if not path.is_file():
                raise BundleError(f"{path} is missing; copy the whole bundle again.")
            if verify and sha256(path) != expected:
                raise BundleError(
                    f"{path} is not the file that was exported (its sha256 differs): truncated, "
                    "changed, or from another bundle. Copy the whole bundle again."
                )
        self.keys = self._array("items/keys.npy")
        self.vectors = self._array("items/vectors.npy")
        expected_shape = (self.manifest["num_items"], self.manifest["dim"])
        if self.vectors.shape != expected_shape or len(self.keys) != len(self.vectors):
            raise BundleError(
                f"{self.directory / 'items/vectors.npy'}: expected {expected_shape} vectors, got "
                f"{self.vectors.shape} for {len(self.keys)} keys. Two bundles were mixed up."
            )

    @property
    def sample_queries(self) -> np.ndarray:
        """`[num_queries, dim]`, vectors of users' queries, to tune and measure indexes on."""
        return self._array("items/sample_queries.npy")

    def _array(self, name: str) -> np.ndarray:
        path = self.directory / name
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read: {error}.") from error

    @property
    def model_version(self) -> str:
        """Names the training; an index must carry the same."""
        return self.manifest["model_version"]

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """All items with the columns a page shows; its keys are the index's keys."""
        items = pd.read_parquet(self.directory / "items" / "catalogue.parquet")
        if "genres" in items:
            items["genres"] = [tuple(genres) for genres in items["genres"]]
        return Catalogue(items)

    @functools.cached_property
    def query_tower(self):
        """Raw inputs by name (arrays with a batch dimension) -> `[batch_size, dim]` float32."""
        import twotower  # noqa: F401  (sets the Keras switch before TensorFlow loads)
        import tensorflow as tf  # isort: skip

        model = tf.saved_model.load(str(self.directory / "query_tower"))
        signature = model.signatures["serving_default"]

        def embed(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return signature(**self.query_tensors(inputs))["embedding"].numpy()

        embed.model = model  # keeps the variables alive
        return embed

    @functools.cached_property
    def _query_inputs(self) -> dict[str, tuple[str, list]]:
        """Type and shape of each."""
        specs = self.manifest["query_inputs"]
        return {spec["name"]: (spec["dtype"], spec["shape"]) for spec in specs}

    def query_tensors(self, inputs: Mapping[str, np.ndarray], is_event: bool = False) -> dict:
        """Raw inputs of the query tower as tensors.

        Args:
            inputs: Arrays by name, a row a query.
            is_event: Whether they are one event for each query, `[num_queries]` in the place of
                each history.

        Raises:
            ValueError: An input that is missing, or that the tower does not have; values of another
                type or rank, rows of different length, numbers that are infinite, or times that
                are no whole seconds.
        """
        import tensorflow as tf

        wanted = self._query_inputs
        missing, unknown = wanted.keys() - inputs.keys(), inputs.keys() - wanted.keys()
        if missing or unknown:
            raise ValueError(
                f"the query tower takes {sorted(wanted)}; missing {sorted(missing)}, unknown "
                f"{sorted(unknown)}. What is not known of a request is '' or NaN or -1."
            )
        tensors = {}
        for name, (dtype, shape) in wanted.items():
            values = inputs[name] if dtype == "string" else as_type(name, inputs[name], dtype)
            try:
                tensors[name] = values = tf.constant(values, dtype)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name}: expected {dtype}, {SAME_LENGTH}; {error}") from error
            if not is_event and not values.shape.is_compatible_with(shape):
                raise ValueError(
                    f"{name}: expected the shape {tuple(shape)}, a row a query; got "
                    f"{tuple(values.shape)}."
                )
        for name, values in tensors.items():
            events, _, what = name.rpartition("_")
            if what not in ("time", "rating") or events not in tensors:
                continue
            if values.shape != (expected := tensors[events].shape):
                raise ValueError(f"{name}: {values.shape} and {events}: {expected} differ.")
        if len({tuple(values.shape[:1]) for values in tensors.values()}) > 1:
            rows = {name: values.shape[:1] for name, values in tensors.items()}
            raise ValueError(f"inputs have a row a query each; got {rows}.")
        return tensors

    @property
    def indexes(self) -> list[str]:
        """Names of the indexes in the bundle, besides `exact`."""
        return sorted(path.parent.name for path in self.directory.glob("index/*/index.json"))

    def retriever(self, name: str = "exact"):
        """The index `name`, or exact search over the bundle's vectors for `exact`.

        Raises:
            BundleError: No such index, or one of another training.
        """
        if name == "exact":
            config = build.IndexConfig("exact", self.manifest["metric"])
            return build.build(config, np.asarray(self.keys), np.asarray(self.vectors))
        if name not in self.indexes:
            raise BundleError(
                f"{self.directory} has no index {name!r}; it has {['exact', *self.indexes]}. "
                f"experiments/build_index.py --bundle={self.directory} makes more."
            )
        path = self.directory / "index" / name
        try:
            return build.load(path, model_version=self.model_version)
        except ValueError as error:
            raise BundleError(f"{path}: {error}") from error
