"""What one training exported: query tower, item vectors and catalogue, checked when they are read.

Another bundle may replace the folder at any time, so every part is compared with the manifest that
was read first.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from twotower.bundle.encoder import encoder, users_of, without_users
from twotower.bundle.inputs import query_tensors
from twotower.bundle.manifest import LINEAGE, MANIFEST, BundleError, read_manifest
from twotower.data.catalogue import Catalogue
from twotower.data.dataset import Dataset
from twotower.data.inputs import QueryInputs
from twotower.data.lineage import Lineage
from twotower.data.requests import Requests
from twotower.storage import description, paths
from twotower.towers.signatures import direct

T = TypeVar("T")


class ExportedModel:
    """The part of a bundle that its export writes, and that never changes.

    A `Bundle` is one. Its docstring describes the arguments, attributes and errors.
    """

    def __init__(self, directory: str | pathlib.Path, verify: bool = True) -> None:
        self.directory, self._verify = paths.local(directory), verify
        self._consistently(self._open)

    def _open(self) -> None:
        self.manifest = read_manifest(self.directory)
        num_items, dim = self.manifest["num_items"], self.manifest["dim"]
        with description.checked(self.directory, self.manifest["files"], self._verify):
            items = self.directory / "items"
            self.keys = _array(items / "keys.npy", np.int64, num_items)
            self.vectors = _array(items / "vectors.npy", np.float32, num_items, dim)

    def _consistently(self, read: Callable[[], T]) -> T:
        """`description.consistently`, with the errors of a bundle."""
        try:
            return description.consistently(self.directory, read)
        except BundleError:
            raise
        except ValueError as error:
            raise BundleError(f"{error} Copy the whole bundle again, or export it.") from error

    def require_in_place(self) -> None:
        """Raises BundleError unless the folder still holds the bundle that was opened."""
        if read_manifest(self.directory)["sha256"] != self.manifest["sha256"]:
            raise BundleError(
                f"another bundle has taken the place of {self.directory} since it was opened; open "
                "it again."
            )

    def read(self, part: str, load: Callable[[pathlib.Path], T], verify: bool = False) -> T:
        """The result of `load(path)` for a part of this bundle, never of one that replaced it.

        Args:
            part: A file or folder of the bundle, such as `query_tower`.
            load: Reads the part; called once more if the folder was replaced meanwhile.
            verify: Whether to compare the part's sha256 even if the bundle was opened without.

        Raises:
            BundleError: No such part, or one that is changed or of another bundle.
        """
        path, files = self.directory / part, self.manifest["files"]
        files = {n: d for n, d in files.items() if pathlib.PurePath(n).is_relative_to(part)}
        if not files:
            raise BundleError(f"{self.directory} has no {part}. Copy the whole bundle again.")

        def read() -> T:
            self.require_in_place()
            with description.checked(self.directory, files, self._verify or verify):
                description.require_no_more(self.directory, files, part)
                return load(path)

        return self._consistently(read)

    @property
    def sample_queries(self) -> np.ndarray:
        """`[num_queries, dim]`, vectors of users' queries, to tune and measure indexes on."""
        dim = self.manifest["dim"]
        return self.read(
            "items/sample_queries.npy", lambda path: _array(path, np.float32, None, dim)
        )

    @property
    def lineage(self) -> Lineage:
        """Which rows the weights have learned from; unknown for bundles of earlier versions."""
        rows = None
        if LINEAGE in self.manifest["files"]:
            rows = self.read(LINEAGE, lambda path: np.asarray(_array(path, np.uint64, None)))
        ancestors = (self.model_version, *self.manifest.get("ancestors", ()))
        return Lineage(rows, ancestors)

    @property
    def model_version(self) -> str:
        """Names the training; an index must carry the same."""
        return self.manifest["model_version"]

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """All items with the columns a page shows; its keys are the index's keys."""
        items = self.read("items/catalogue.parquet", pd.read_parquet)
        if "genres" in items:
            items["genres"] = [tuple(genres) for genres in items["genres"]]
        return Catalogue(items)

    @property
    def id_hashes(self) -> np.ndarray:
        """`[num_items]` uint64, a hash of the id of each item, in the order of keys.

        Two bundles whose hashes agree give the same items the same keys.
        """
        items = self.read(
            "items/catalogue.parquet", lambda path: pd.read_parquet(path, columns=["item_id"])
        )
        return hashes_of_ids(items["item_id"].to_numpy(object))

    def tower_model(self, part: str) -> Any:
        """The SavedModel of `query_tower` or `item_tower`.

        Raises:
            BundleError: A tower that is changed, or of another training.
        """
        import tensorflow as tf

        model = self.read(part, lambda path: tf.saved_model.load(str(paths.literal(path))))
        version = model.model_version.numpy().decode()
        if version != self.model_version:
            raise BundleError(
                f"{self.directory / part} is of model {version!r}, not of "
                f"{self.model_version!r}. Two bundles were mixed up; export one of them again."
            )
        return model

    @functools.cached_property
    def query_tower(self) -> Any:
        """Raw inputs by name (arrays with a batch dimension) -> `[batch_size, dim]` float32.

        Raises:
            BundleError: A tower that is changed, or of another training.
        """
        model = self.tower_model("query_tower")
        _, specs = model.signatures["serving_default"].structured_input_signature
        if specs.keys() != self._query_inputs.keys():
            raise BundleError(
                f"{self.directory / MANIFEST}: query_inputs are {sorted(self._query_inputs)}; the "
                f"query tower takes {sorted(specs)}. Copy the whole bundle again, or export it."
            )
        call = direct(model.signatures["serving_default"])

        def embed(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            return call(self.query_tensors(inputs))["embedding"].numpy()

        tower: Any = embed
        tower.model = model  # keeps the variables alive
        return tower

    @functools.cached_property
    def _query_inputs(self) -> dict[str, tuple[str, list]]:
        """Name of each input of the query tower -> its dtype and shape."""
        specs = self.manifest["query_inputs"]
        return {spec["name"]: (spec["dtype"], spec["shape"]) for spec in specs}

    def query_tensors(self, inputs: Mapping[str, np.ndarray], is_event: bool = False) -> dict:
        """Raw inputs of the query tower as tensors, checked; see `inputs.query_tensors`."""
        return query_tensors(self._query_inputs, inputs, is_event)

    @functools.cached_property
    def encode(self) -> Callable[[Requests], np.ndarray]:
        """Requests -> their vectors, `[num_requests, dim]` float32.

        Inputs of the query tower that no other field of `Requests` has come from its `context`.
        """
        return self.encoder(without_users(self.catalogue, [*self._query_inputs]))

    def encoder(self, dataset: Dataset) -> Callable[[Requests], np.ndarray]:
        """As `encode`, but the columns of users whom a dataset has come from that dataset.

        Args:
            dataset: The data that the bundle was trained on, or other data in which items have the
                same keys. The bundle or the data may have further items at its end. For users of
                any other data, `users_of` makes such a dataset.

        Raises:
            ValueError: A dataset in which keys of the bundle are other items.
        """
        self.catalogue.require_same_keys(dataset.items)
        if len(dataset.items) < len(self.catalogue):  # else histories would lose the further items
            dataset = users_of(dataset.users, self.catalogue)
        inputs = QueryInputs(dataset, [*self._query_inputs])
        # The tower is loaded at the first request: a process may never ask for vectors.
        return encoder(lambda raw: self.query_tower(raw), inputs, self.manifest["dim"])


def hashes_of_ids(ids: np.ndarray) -> np.ndarray:
    """A hash of each of the ids `[num_ids]`, uint64."""
    return pd.util.hash_array(ids, categorize=False)


def _array(path: pathlib.Path, dtype, *shape: int | None) -> np.ndarray:
    """An array of that type and shape, read into memory; None fits any size.

    A memory-mapped array would change if another file were copied over this one, or a read of it
    would end the process (SIGBUS).
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from error
    fits = len(shape) == array.ndim and all(
        size in (None, real) for size, real in zip(shape, array.shape)
    )
    if array.dtype != dtype or not fits:
        raise BundleError(
            f"{path}: expected {list(shape)} of {np.dtype(dtype)}; got {list(array.shape)} of "
            f"{array.dtype}. Two bundles were mixed up; copy the whole bundle again."
        )
    return array
