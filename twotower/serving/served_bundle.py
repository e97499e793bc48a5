"""ServedBundle: a bundle whose indexes are loaded once, with the items that came and went since."""

import functools
import logging
import pathlib
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from twotower.bundle.bundle import Bundle
from twotower.bundle.inputs import tensor
from twotower.bundle.manifest import BundleError
from twotower.data.catalogue import Catalogue
from twotower.data.config import TIME_DEPENDENT
from twotower.data.dataset import Dataset
from twotower.data.inputs import ItemInputs
from twotower.ragged import Ragged
from twotower.retrieval.base import Retriever
from twotower.retrieval.vectors import KeyedVectors
from twotower.serving.answers import Cards
from twotower.serving.asks import FieldError
from twotower.serving.index_client import IndexCallError
from twotower.serving.item_columns import ItemColumns, missing_values, vector_lengths
from twotower.towers.signatures import direct

LOG = logging.getLogger("twotower.serving")
# Seconds for which an index that cannot be opened is not tried again.
PAUSE = 30.0


class ServedBundle(Bundle):
    """A bundle whose indexes are loaded once each, so that all funnels search the same one and see
    its changes.

    Threads may search at once. Changes of items come from one thread at a time.

    Args:
        directory: The bundle's folder.
        index: Index of searches that name none; by default `hnsw` where the bundle has it, else
            `exact`.

    Attributes:
        index: That index.
        items_now: The bundle's items, and behind them those that were added since.
        cards: What an answer says of these items.
        removed: Keys of the items that are not to be answered.
        vector_columns: Names of the vectors of items that the item tower reads or that items were
            added with. A catalogue has no such columns.

    Raises:
        BundleError: A file is missing, changed, or of another training; or no such index.
    """

    def __init__(self, directory: str | pathlib.Path, index: str = "") -> None:
        super().__init__(directory)
        self.index = index or ("hnsw" if "hnsw" in self.indexes else "exact")
        self.items_now = self.catalogue
        self.cards = Cards(self.items_now)
        self.removed: np.ndarray = np.empty(0, np.int64)
        self.vector_columns = {*vector_lengths(self._item_inputs)}
        self._retrievers: dict[str, Retriever] = {}
        # Key -> vector of an item that was added or replaced, None for one that was removed: what
        # an index lacks that is opened later.
        self._changed: dict[int, np.ndarray | None] = {}
        self._changing = threading.Lock()
        self._opening = threading.Lock()
        # Of this moment, since an index that comes later is not part of what was checked.
        self.index_names = ["exact", *self.indexes]
        self._damaged: dict[str, float] = {}  # name -> until when it is not tried again
        self.retriever(self.index)

    def retriever(self, name: str = "exact", allowed_uris: Collection[str] = ()) -> Retriever:
        """The index `name` with all changes of items, the same object at each call; see
        `Bundle.retriever`."""
        if not self.has_open(name):
            with self._opening:
                if not self.has_open(name):
                    retriever = self._open_index(name, allowed_uris)
                    with self._changing:
                        self._update(retriever, self._changed)
                        self._retrievers[name] = retriever
        return self._retrievers[name]

    def has_open(self, name: str) -> bool:
        """Whether an index is loaded."""
        return name in self._retrievers

    def _open_index(self, name: str, allowed_uris: Collection[str]) -> Retriever:
        return super().retriever(name, allowed_uris)

    @staticmethod
    def _update(retriever: Retriever, changed: Mapping[int, np.ndarray | None]) -> None:
        added = {key: vector for key, vector in changed.items() if vector is not None}
        if added:
            retriever.add(np.array([*added]), np.stack([*added.values()]))
        gone = np.array([key for key, vector in changed.items() if vector is None], np.int64)
        if len(gone := gone[retriever.knows(gone)]):
            retriever.remove(gone)

    # Searches.

    def named(self, index: str) -> Retriever:
        """The index that a request names; the default one for "".

        Raises:
            FieldError: There is none of this name.
            IndexCallError: It cannot be opened; the log says why.
        """
        name = self.require_index(index or self.index)
        wrong = IndexCallError(f"the index {name} cannot be opened; ask another one")
        if time.monotonic() < self._damaged.get(name, 0):
            raise wrong
        try:
            return self.retriever(name)
        except (BundleError, ImportError, OSError, RuntimeError) as error:
            LOG.error("the index %s cannot be opened: %s", name, error)
            self._damaged[name] = time.monotonic() + PAUSE
            raise wrong from error

    def require_index(self, name: str) -> str:
        """The name of an index of this bundle.

        Raises:
            FieldError: There is none of this name.
        """
        if name not in self.index_names:
            raise FieldError("index", f"expected one of {self.index_names}")
        return name

    def search(
        self, vectors: np.ndarray, k: int, exclude: Sequence[str], index: str
    ) -> list[list[dict[str, Any]]]:
        """The best `k` items of each vector of this training, from one index.

        Raises:
            FieldError: No such index, or vectors of another length or that are not finite.
        """
        keys = self.items_now.keys_of(exclude)
        rows = Ragged.from_rows([np.concatenate([keys[keys >= 0], self.removed])] * len(vectors))
        retriever = self.named(index)
        try:
            found = retriever.search(vectors, k, exclude=rows)
        except ValueError as error:
            raise FieldError("vectors", str(error)) from error
        # Read after the search, which may find an item that was added meanwhile.
        cards, lists = self.cards, []
        for row, scores, count in zip(found.keys, found.scores.tolist(), found.counts):
            listed = zip(cards.of(row[:count]), scores)
            lists.append([{**card, "score": round(score, 6)} for card, score in listed])
        return lists

    def similar(self, item_id: str, k: int, index: str) -> list[dict[str, Any]]:
        """The best `k` items for the vector of an item, without that item.

        Raises:
            FieldError: No such index; or an item that is not in the catalogue, or has no vector.
        """
        (key,) = self.items_now.keys_of([item_id]).tolist()
        if key in self._changed:
            vector = self._changed[key]
        else:
            row = np.flatnonzero(self.keys == key)
            vector = self.vectors[row[0]] if len(row) else None
        if vector is None:
            raise FieldError("item_id", "there is no such item in the index")
        return self.search(np.asarray(vector)[None], k, [item_id], index)[0]

    def as_vectors(self, rows: Sequence[Sequence[float]]) -> np.ndarray:
        """Vectors of a request, `[num_vectors, dim]` float32.

        Raises:
            FieldError: Rows of another length than this bundle's vectors.
        """
        dim = self.manifest["dim"]
        if wrong := [len(row) for row in rows if len(row) != dim]:
            raise FieldError("vectors", f"expected {dim} numbers each; got {wrong[0]}")
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused by a search
            return np.array(rows, np.float64).astype(np.float32).reshape(-1, dim)

    def titles(self, text: str, k: int) -> list[dict[str, Any]]:
        """The first `k` items whose titles contain all words of a text."""
        cards = self.cards
        return cards.of(cards.search(text, k, self.removed))

    def items_of(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The items of ids, without those that are not in the catalogue."""
        cards, keys = self.cards, self.items_now.keys_of(ids)
        return cards.of(keys[keys >= 0])

    @property
    def num_items(self) -> int:
        """Number of items that a search may find."""
        return len(self._retrievers[self.index])

    # Changes.

    def add_items(self, items: Catalogue, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Adds items to all indexes, or replaces their vectors.

        Args:
            items: The items from now on: those of `items_now` and, after them, the new ones.
            keys: `[num_added]` their keys there.
            vectors: `[num_added, dim]` float32.

        Raises:
            ValueError: Vectors of another length, or that are not finite; nothing is changed then.
        """
        KeyedVectors.checked(keys, vectors, self.manifest["metric"], self.manifest["dim"])
        if items is not self.items_now:  # before a search can find them
            self.items_now, self.cards = items, Cards(items)
        self._change(dict(zip(keys.tolist(), vectors)))
        self.removed = np.setdiff1d(self.removed, keys)

    def remove_items(self, keys: np.ndarray) -> None:
        """Removes the items of `keys` `[n]` from all indexes; keys that an index lacks are
        ignored."""
        self._change(dict.fromkeys(keys.tolist()))
        self.removed = np.union1d(self.removed, keys)

    def _change(self, changed: Mapping[int, np.ndarray | None]) -> None:
        with self._changing:
            for retriever in self._retrievers.values():
                self._update(retriever, changed)
            self._changed |= changed

    def send_changes(self) -> None:
        """Tells indexes elsewhere of the changes that they lack: here there are none elsewhere."""

    # Items.

    @property
    def _item_inputs(self) -> list[dict[str, Any]]:
        """Name, dtype and shape of each input of the item tower."""
        return self.manifest["item_inputs"]

    @functools.cached_property
    def item_tower(self) -> Any:
        """Raw inputs of items by name -> `[num_items, dim]` float32.

        Raises:
            BundleError: A tower that is changed, or of another training.
            ValueError: When it is called: inputs of another type or shape than the manifest says.
        """
        model = self.tower_model("item_tower")
        call = direct(model.signatures["serving_default"])
        specs = {spec["name"]: (spec["dtype"], spec["shape"]) for spec in self._item_inputs}

        def embed(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            tensors = {name: tensor(name, inputs[name], *spec) for name, spec in specs.items()}
            return call(tensors)["embedding"].numpy()

        tower: Any = embed
        tower.model = model  # keeps the variables alive
        return tower

    def vectors_of(self, items: list[dict[str, Any]]) -> tuple[Catalogue, np.ndarray, np.ndarray]:
        """The items from now on with new ones among them, the keys of these, and their vectors.

        What the item tower reads and an item does not have is missing, as in training.

        Args:
            items: Columns of each, `item_id` among them; lists of texts are tags, and lists of
                numbers vectors (see `ItemColumns`). One whose id is there already takes its place.

        Returns:
            The catalogue, keys `[num_items]`, and vectors `[num_items, dim]` float32.

        Raises:
            ValueError: Columns that do not fit the catalogue's or the item tower, or vectors that
                are not finite.
        """
        columns = ItemColumns.of(items, self.items_now, self._item_inputs, self.vector_columns)
        catalogue = self.items_now.updated(columns.table)
        keys = catalogue.keys_of(columns.table["item_id"])
        kinds = {"user_id": object, "item_id": object, "timestamp": np.int64}
        nothing = pd.DataFrame({name: np.array([], kind) for name, kind in kinds.items()})
        data = Dataset("", nothing, catalogue.items.iloc[keys], nothing[["user_id"]])
        known = {*TIME_DEPENDENT, *catalogue.items} - columns.vectors.keys()
        names = [spec["name"] for spec in self._item_inputs if spec["name"] in known]
        inputs = ItemInputs(data, np.empty(0, np.int64), names)(np.arange(len(keys)))
        missing = {spec["name"]: missing_values(spec, len(keys)) for spec in self._item_inputs}
        vectors = self.item_tower(missing | inputs | columns.vectors)
        if not np.isfinite(vectors).all():
            raise ValueError("the item tower gives vectors that are not finite for these items.")
        return catalogue, keys, vectors
