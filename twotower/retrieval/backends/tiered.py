"""Two tiers searched as one: IVF-PQ of the main catalogue, and HNSW of fresh items in front of it.

This is the usual production layout. Codes are small and their lists are learned once, so the main
tier is built rarely, say each night. Items that come in between go to a graph, which needs no
training and finds new items as well as old ones.
"""

import dataclasses
import pathlib
from typing import Self

import numpy as np

from twotower.limits import at_least, whole_number
from twotower.ragged import Ragged
from twotower.retrieval.arguments import checked_keys
from twotower.retrieval.backends.faiss_index import faiss
from twotower.retrieval.backends.hnsw import HnswConfig, HnswIndex
from twotower.retrieval.backends.ivf_pq import IvfPqConfig, IvfPqIndex
from twotower.retrieval.candidates import Candidates
from twotower.retrieval.store import Store
from twotower.retrieval.vectors import KeyedVectors

FRESH = "fresh"
# The main tier should absorb the fresh one when that is larger than this share of it.
MAX_FRESH = 0.1


@dataclasses.dataclass(frozen=True)
class TieredConfig(IvfPqConfig):
    """Parameters of the main tier (see IvfPqConfig) and of the fresh one.

    Attributes:
        fresh_buffer: Number of fresh items that are scanned exactly before the graph absorbs them.

    >>> TieredConfig(num_lists=100, fresh_buffer=500).code_bytes
    0
    """

    fresh_buffer: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, fresh_buffer=1)


class TieredIndex(IvfPqIndex):
    """IVF-PQ with HNSW in front: this object is the main tier, `_tiers[1]` the other.

    An item is in one tier: if it is added again, it leaves the main one. A change replaces both
    tiers by one assignment, so that a search sees each item once. `absorb` moves the fresh tier
    into the main one, whose centres and codes stay as they were learned.

    >>> index = TieredIndex().build(np.array([7, 8]), np.eye(3, dtype=np.float32)[:2])
    >>> index.add(np.array([9]), np.float32([[0, 0, 2]]))  # found by the next search
    >>> index.search(np.float32([[1, 3, 2]]), k=2).keys.tolist()
    [[9, 8]]
    """

    backend = "tiered"
    Config = TieredConfig
    # Items of the main tier, and the fresh one if there is any.
    _tiers: tuple[Store, HnswIndex | None]

    @property
    def _store(self) -> Store:
        return self._tiers[0]

    @_store.setter
    def _store(self, store: Store) -> None:
        self._tiers = store, None

    @property
    def _fresh(self) -> HnswIndex | None:
        return self._tiers[1]

    def _empty(self) -> HnswIndex:
        config = HnswConfig(ef_construction=100, threads=self.config.threads)
        return HnswIndex(self.metric, config)

    def add(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        self._require_built()
        new = KeyedVectors.checked(keys, vectors, self.metric, self.dim)
        if not len(new):
            return
        store, fresh = self._tiers
        if fresh is None:
            # A copy, since the caller may reuse the array. Not `new.vectors`: cosine has scaled
            # them, and would scale them again.
            fresh = self._empty().build(new.keys, np.array(vectors, np.float32))
        else:
            fresh = fresh.sibling()
            fresh._store = fresh._store.add(new)
            fresh = self._grown(fresh)
        self._tiers = store.remove(new.keys), fresh

    def _grown(self, fresh: HnswIndex) -> HnswIndex:
        """With its buffer in the graph once that is long enough; searches under way keep the old
        graph."""
        if len(fresh.state()["fresh_keys"]) <= self.config.fresh_buffer:
            return fresh
        if fresh.needs_rebuild:  # of tombstones
            return self._empty().build(*fresh.live())
        fresh._index = faiss.clone_index(fresh._index)
        return fresh.absorb()

    def remove(self, keys: np.ndarray) -> None:
        self._require_built()
        keys = checked_keys(keys, "keys")
        self.require_known(keys)
        store, fresh = self._tiers
        if fresh is not None:
            fresh = fresh.sibling()
            fresh._store = fresh._store.remove(keys)
        self._tiers = store.remove(keys), fresh

    def absorb(self) -> Self:
        self._require_built()
        store, fresh = self._tiers
        if fresh is not None:
            self._tiers = store.add(KeyedVectors(*fresh.live(), self.metric)), None
        return super().absorb()

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude: Ragged | None = None,
        allow: np.ndarray | None = None,
    ) -> Candidates:
        store, fresh = self._tiers
        main = self._search_store(store, queries, k, exclude, allow)
        if fresh is None:
            return main
        k = min(whole_number(k, "k", 1), max(len(store) + len(fresh), 1))
        found = fresh.search(queries, k, exclude, allow)
        keys = np.concatenate([main.keys, found.keys], axis=1)
        return Candidates.rank(keys, np.concatenate([main.scores, found.scores], axis=1), k)

    def __len__(self) -> int:
        return super().__len__() + (0 if self._fresh is None else len(self._fresh))

    @property
    def keys(self) -> np.ndarray:
        return np.sort(self.live()[0])

    def knows(self, keys: np.ndarray) -> np.ndarray:
        known = super().knows(keys)
        return known if self._fresh is None else known | self._fresh.knows(keys)

    def live(self) -> tuple[np.ndarray, np.ndarray]:
        store, fresh = self._tiers  # read once: a change may come in between
        parts = [store.live()] + ([] if fresh is None else [fresh.live()])
        keys, vectors = (np.concatenate(part) for part in zip(*parts))
        return keys, vectors

    @property
    def needs_rebuild(self) -> str:
        fresh = 0 if self._fresh is None else len(self._fresh)
        if fresh > MAX_FRESH * len(self._store.built):
            return f"{fresh} fresh items in front of {len(self._store.built)}"
        return super().needs_rebuild

    @property
    def backend_bytes(self) -> int:
        return super().backend_bytes + (0 if self._fresh is None else self._fresh.memory_bytes)

    def save(self, directory: pathlib.Path) -> None:
        super().save(directory)
        if self._fresh is not None:
            (directory / FRESH).mkdir()
            self._fresh.save(directory / FRESH)

    def load(self, directory: pathlib.Path, mmap: bool = False) -> Self:
        super().load(directory, mmap)
        found = (directory / FRESH).is_dir()
        self._tiers = self._store, self._empty().load(directory / FRESH) if found else None
        return self
