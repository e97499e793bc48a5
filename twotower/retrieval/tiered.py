"""Two tiers searched as one: IVF-PQ of the main catalogue, and in front of it HNSW of fresh items.

The usual production layout. Codes are small and their lists are learned once, so the main tier is
built rarely, say each night; what comes in between goes to a graph, which needs no training and
finds new items as well as old ones.
"""

import copy
import dataclasses
import pathlib
import threading

import numpy as np

from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates
from twotower.retrieval.faiss_index import faiss, require
from twotower.retrieval.hnsw import HnswConfig, HnswIndex
from twotower.retrieval.ivf_pq import IvfPqConfig, IvfPqIndex
from twotower.retrieval.vectors import KeyedVectors, checked_keys

FRESH = "fresh"
# The main tier should take the fresh one in when that is more than this share of it.
MAX_FRESH = 0.1
# Searches that fall between the steps of a change are made again, and then wait for the writer.
TRIES = 3


@dataclasses.dataclass(frozen=True)
class TieredConfig(IvfPqConfig):
    """Parameters of the main tier (see IvfPqConfig) and of the fresh one (see HnswConfig).

    Attributes:
        fresh_neighbours: Links of a vector in the graph of fresh items (M).
        fresh_ef_construction: Candidates kept while one is linked in.
        fresh_ef_search: Candidates kept while a query walks.
        fresh_buffer: Fresh items scanned exactly until the graph takes them in.
    """

    fresh_neighbours: int = 32
    fresh_ef_construction: int = 100
    fresh_ef_search: int = 200
    fresh_buffer: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, fresh_neighbours=2, fresh_ef_construction=1, fresh_ef_search=1)
        require(self, fresh_buffer=1)


class TieredIndex(IvfPqIndex):
    """IVF-PQ with HNSW in front: this object is the main tier, `_fresh` the other.

    An item is in one tier: added anew it leaves the main one. `absorb` moves the fresh tier into
    the main one, whose centres and codes stay as they were learned.
    """

    backend = "tiered"
    Config = TieredConfig

    def __init__(self, metric: str = "dot", config: TieredConfig | None = None) -> None:
        super().__init__(metric, config)
        self._fresh: HnswIndex | None = None
        self._writing = threading.Lock()

    def _empty(self) -> HnswIndex:
        config = self.config
        return HnswIndex(
            self.metric,
            HnswConfig(
                neighbours=config.fresh_neighbours,
                ef_construction=config.fresh_ef_construction,
                ef_search=config.fresh_ef_search,
                threads=config.threads,
            ),
        )

    def build(self, keys: np.ndarray, vectors: np.ndarray) -> "TieredIndex":
        super().build(keys, vectors)
        self._fresh = None
        return self

    def add(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        self._require_built()
        new = KeyedVectors.checked(keys, vectors, self.metric, self.dim)
        if not len(new):
            return
        with self._writing:
            if self._fresh is None:
                self._fresh = self._empty().build(new.keys, vectors)
            else:
                self._fresh.add(new.keys, vectors)
                self._fresh = self._grown(self._fresh)
            self._store = self._store.remove(new.keys)

    def _grown(self, fresh: HnswIndex) -> HnswIndex:
        """With its buffer in the graph once that is long enough; searches under way keep the old
        graph."""
        if len(fresh.state()["fresh_keys"]) <= self.config.fresh_buffer:
            return fresh
        if fresh.needs_rebuild:  # of tombstones
            return self._empty().build(*fresh.live())
        other = copy.copy(fresh)
        other._index = faiss.clone_index(fresh._index)
        return other.absorb()

    def remove(self, keys: np.ndarray) -> None:
        self._require_built()
        keys = checked_keys(keys, "keys")
        with self._writing:
            self.require_known(keys)
            if self._fresh is not None:
                self._fresh.remove(keys[self._fresh.knows(keys)])
            self._store = self._store.remove(keys)

    def absorb(self) -> "TieredIndex":
        self._require_built()
        if self._fresh is not None:
            keys, vectors = self._fresh.live()
            self._fresh = None
            super().add(keys, vectors)
        return super().absorb()

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude: Ragged | None = None,
        allow: np.ndarray | None = None,
    ) -> Candidates:
        for _ in range(TRIES):
            before = self._state_of_both()
            found = self._search_both(queries, k, exclude, allow)
            if before == self._state_of_both():
                return found
        with self._writing:
            return self._search_both(queries, k, exclude, allow)

    def _state_of_both(self) -> tuple:
        # Stores are immutable, so that the same one means the same items.
        fresh = self._fresh
        return self._store, fresh, fresh and fresh._store

    def _search_both(self, queries, k: int, exclude, allow) -> Candidates:
        fresh, main = self._fresh, super().search(queries, k, exclude, allow)
        if fresh is None:
            return main
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
        parts = [super().live()] + ([] if self._fresh is None else [self._fresh.live()])
        return tuple(np.concatenate(part) for part in zip(*parts))

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

    def load(self, directory: pathlib.Path, mmap: bool = False) -> "TieredIndex":
        super().load(directory, mmap)
        found = (directory / FRESH).is_dir()
        self._fresh = self._empty().load(directory / FRESH) if found else None
        return self
