"""Retriever: the interface of all indexes. A backend only finds neighbours.

This class checks arguments, keeps updates, excludes and filters items, over-fetches, and completes
short rows, for all backends.
"""

import abc
import contextlib
import dataclasses
import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from twotower.limits import whole_number
from twotower.ragged import Ragged
from twotower.retrieval.arguments import checked_exclude, checked_keys, checked_rows
from twotower.retrieval.candidates import NO_SCORE, Candidates, order_ties, widened
from twotower.retrieval.overfetch import filtered_fetch, search_allowed
from twotower.retrieval.store import Store
from twotower.retrieval.vectors import METRICS, KeyedVectors

# With this many times the items that it was tuned for, an index should be tuned again.
OUTGROWN = 1.5


@dataclasses.dataclass(frozen=True)
class NoConfig:
    """For a backend without parameters.

    >>> dataclasses.asdict(NoConfig())
    {}
    """


class Retriever(abc.ABC):
    """Finds the items whose vectors score highest with a query's.

    One thread at a time may add, replace and remove items while others search. New vectors go to a
    buffer that every search scans exactly, and removed ones get a tombstone. This class also keeps
    the float32 vectors for exact scans.

    Args:
        metric: `dot`, `cosine` or `euclidean`. The score under `euclidean` is the negative squared
            distance, so larger is better in all three.
        config: Parameters, an object of the backend's class `Config`; None for its defaults.

    Raises:
        ValueError: An unknown metric.

    >>> from twotower.retrieval.backends.brute_force import BruteForceIndex
    >>> index = BruteForceIndex().build(np.array([7, 8, 9]), np.eye(3, dtype=np.float32))
    >>> index.remove(np.array([8]))
    >>> index.search(np.float32([[1, 3, 2]]), k=2, exclude=Ragged.from_rows([[9]])).keys.tolist()
    [[7, -1]]
    """

    # Name of the backend in an IndexConfig and on disk, and the dataclass of its parameters.
    backend = ""
    Config: type = NoConfig
    # Whether answers are exact by construction.
    is_exact = False
    # Number of distances that the backend computes for each candidate that it fetches; in HNSW (M
    # 32) over 20,000 vectors 9 to 16 were counted. If a filter or exclusions leave fewer items than
    # this number times the candidates to fetch, an exact scan of these items is cheaper.
    distances_per_candidate = 10.0
    # Whether `absorb` can add vectors to the backend; otherwise it builds the backend again.
    can_append: bool = False
    # Whether `_discard` deletes vectors; otherwise tombstones hide the removed ones.
    can_forget = False
    # Whether a build or an absorb has failed, so that the backend may lack vectors.
    _is_half_built = False

    def __init__(self, metric: str = "dot", config: Any = None) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {METRICS}; got {metric!r}.")
        self.metric = metric
        self.config = self.Config() if config is None else config
        # The result of `tuning.tune`, which is saved with the index. `config_at` reads its `k`.
        self.tuned: dict = {}
        nothing = np.empty(0, np.int64), np.empty((0, 0), np.float32)
        self._store = Store.of(KeyedVectors(*nothing, metric))

    # Methods that a backend implements.

    @abc.abstractmethod
    def _build(self, vectors: np.ndarray) -> None:
        """Indexes `[num_items, dim]` float32 (of length 1 under cosine)."""

    @abc.abstractmethod
    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions `[num_queries, k]` int64 and scores float32, larger is better, best first.

        A short row ends in positions of -1. `k` is at most the number of vectors built. The queries
        are `[num_queries, dim]` float32, as `arguments.checked_rows` returns them.
        """

    def _append(self, vectors: np.ndarray) -> None:
        """Adds vectors `[num_new, dim]` float32 at the positions after all others, if `can_append`.
        `_vectors` already holds them."""
        raise NotImplementedError

    def _discard(self, positions: np.ndarray) -> None:  # noqa: B027 (tombstones hide them anyhow)
        """Deletes the vectors at `positions` `[n]`, if `can_forget`; other positions do not
        change."""

    def efforts(self, k: int) -> dict[str, list[int]]:
        """The settings that `tuning.tune` may try for `k` answers: fields of `config`, each with
        ascending values. For each combination of the others it raises the last field until the
        target is reached."""
        return {}

    def config_at(self, depth: int) -> Any:
        """The parameters that find `depth` candidates.

        If many items are excluded or filtered out, a search fetches far more candidates than the k
        that it was tuned for. The last of these lie in partitions that a search for k does not
        reach. So the search effort grows in proportion to the number fetched.
        """
        times = depth / self.tuned.get("k", depth)
        if times <= 1:
            return self.config
        efforts = {}
        for name, values in self.efforts(depth).items():
            if name != "refine":  # in units of k already
                given = getattr(self.config, name)
                most = min(values[-1], len(self._vectors))
                efforts[name] = max(given, min(math.ceil(times * given), most))
        return dataclasses.replace(self.config, **efforts)

    def _save(self, directory: pathlib.Path) -> None:  # noqa: B027 (most backends have none)
        """Writes the files of the backend."""

    def _load(self, directory: pathlib.Path) -> None:
        """Reads the files that `_save` wrote; `_vectors` is already loaded."""
        self._build(self._vectors)

    @property
    def backend_bytes(self) -> int:
        """Memory of the backend besides the vectors that this class keeps."""
        return 0

    @property
    def _vectors(self) -> np.ndarray:
        """`[num_built, dim]`, what the backend was built from."""
        return self._store.built.vectors

    # Methods for callers.

    def build(self, keys: np.ndarray, vectors: np.ndarray) -> Self:
        """Indexes vectors in place of all earlier ones, and returns itself. Do not call it while
        other threads search.

        Args:
            keys: `[num_items]` integers of 0 or more, no duplicates.
            vectors: `[num_items, dim]` floats. If they are float32 and contiguous, and the metric
                is not cosine, they are not copied: do not change them afterwards.

        Raises:
            ValueError: Duplicate or negative keys; another number of vectors than keys; no items;
                vectors that are not finite floats, are longer than `arguments.MAX_LENGTH`, or are
                zero under cosine.
        """
        built = self.checked_items(keys, vectors)
        if len(built) == 0:
            raise ValueError("an index is built from one item or more; got none.")
        self.tuned = {}
        with self._building():
            self._store = Store.of(built)
            self._build(built.vectors)
        return self

    def checked_items(
        self, keys: np.ndarray, vectors: np.ndarray, dim: int | None = None
    ) -> KeyedVectors:
        """The arguments of `build` and `add`, checked.

        Args:
            keys: `[num_items]` integers of 0 or more, no duplicates.
            vectors: `[num_items, dim]` floats.
            dim: Length of a vector; None for any.

        Raises:
            ValueError: As in `build`.
        """
        return KeyedVectors.checked(keys, vectors, self.metric, dim)

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        """For changes of the backend. If one fails, as without memory, the backend differs from the
        store: a search would miss items or give wrong ones, so it is refused."""
        self._is_half_built = True
        yield
        self._is_half_built = False

    @property
    def dim(self) -> int:
        """Length of the vectors; 0 before `build`."""
        return self._store.built.vectors.shape[1]

    def __len__(self) -> int:
        """Number of items that a search may find."""
        return len(self._store)

    @property
    def keys(self) -> np.ndarray:
        """Keys of the items that a search may find, `[num_items]` int64, ascending."""
        return self._store.keys

    def state(self) -> dict[str, np.ndarray]:
        """The arrays of the items, by name.

        `keys` `[num_built]` and `vectors` `[num_built, dim]` as built; `dead` `[num_built]` bool,
        which of these were removed or replaced since; `fresh_keys` and `fresh_vectors`, added
        since.
        """
        return self._store.arrays()

    @property
    def memory_bytes(self) -> int:
        """Bytes of the backend, of the float32 vectors for exact scans, and of the keys."""
        return self.backend_bytes + self._store.num_bytes

    def add(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Adds items or replaces their vectors; the next search finds them.

        Each call copies the buffer, so add many items in one call. Warns when the buffer exceeds
        `store.MAX_BUFFER` vectors, or when the catalogue outgrows the size it was tuned for.

        Args:
            keys: `[num_new]` integers of 0 or more, no duplicates.
            vectors: `[num_new, dim]` floats.

        Raises:
            ValueError: As in `build`; nothing is changed then.
        """
        self._require_built()
        before = self._store.full or self.outgrown
        self._store = self._store.add(self.checked_items(keys, vectors, self.dim))
        reason = self._store.full or self.outgrown
        if reason and not before:
            warnings.warn(f"{type(self).__name__}: {reason}.", stacklevel=2)

    def remove(self, keys: np.ndarray) -> None:
        """Removes the items of `keys` `[n]`; the next search does not find them. Duplicates are
        allowed.

        Raises:
            ValueError: A key that is not in the index; nothing is changed then.
        """
        self._require_built()
        keys = checked_keys(keys, "keys")
        self.require_known(keys)
        self._store = self._store.remove(keys)

    def knows(self, keys: np.ndarray) -> np.ndarray:
        """Which of these keys a search may find, `[num_keys]` bool."""
        return self._store.knows(checked_keys(keys, "keys"))

    def require_known(self, keys: np.ndarray) -> None:
        """Raises ValueError if some of `keys` `[n]` are not in the index; the message names
        them."""
        unknown = keys[~self.knows(keys)]
        if len(unknown):
            raise ValueError(
                f"keys {unknown[:5].tolist()} are not in the index ({len(unknown)} in all); "
                "nothing was removed."
            )

    def absorb(self) -> Self:
        """Moves the buffer into the backend, and returns itself. Do not call it while other threads
        search.

        Removed items leave the backend if it can delete vectors; otherwise (HNSW) tombstones still
        hide them. Partitions and codes remain those of the first build. Only a rebuild,
        `build(*retriever.live())`, learns them again: `needs_rebuild` says when. A backend that
        cannot add vectors is rebuilt by this call.
        """
        self._require_built()
        store = self._store
        if not store.is_changed:
            return self
        if not self.can_append:
            keys, vectors = store.live()
            if len(keys):
                tuned = self.tuned
                self.build(keys, vectors)
                self.tuned = tuned
            return self
        gone = np.flatnonzero(store.removed & (store.built.keys >= 0))
        with self._building():
            self._store = store.absorbed(self.can_forget)
            if len(gone) and self.can_forget:
                self._discard(gone)
            if len(store.fresh):
                self._append(store.fresh.vectors)
        return self

    def live(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys `[num_items]` and vectors `[num_items, dim]` of all items, updates included."""
        return self._store.live()

    @property
    def needs_rebuild(self) -> str:
        """Why the index should be rebuilt or absorb its buffer; "" if it need not. The limits are
        `store.MAX_BUFFER`, `store.MAX_TOMBSTONES` and `OUTGROWN`."""
        return self._store.worn or self.outgrown

    @property
    def outgrown(self) -> str:
        """How far the catalogue has outgrown the tuning; "" if it has not."""
        tuned_for = self.tuned.get("num_items", 0)
        if not tuned_for or len(self) < OUTGROWN * tuned_for:
            return ""
        return (
            f"it was tuned for {tuned_for} items and now holds {len(self)}: its recall may have "
            "fallen; run tuning.tune again"
        )

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude: Ragged | None = None,
        allow: np.ndarray | None = None,
    ) -> Candidates:
        """The best `k` items of each query.

        A row is short only if no more items are left: if an approximate backend finds too few for a
        row, an exact scan answers that row.

        Args:
            queries: `[num_queries, dim]` floats. Float32 and contiguous ones are not copied, unless
                the metric is cosine or the exclusions differ much in length.
            k: 1 or more. The answer is `[num_queries, min(k, number of items)]`; it has one column
                if all items were removed.
            exclude: For each query, the keys that must not be answered; unknown keys are ignored.
            allow: `[num_allowed]` keys that may be answered, the same for all queries; unknown keys
                are ignored.

        Raises:
            ValueError: Queries of another dimension, that are not finite, are longer than
                `arguments.MAX_LENGTH`, or are zero under cosine; a k that is not an integer of 1 or
                more; another number of exclusion rows than queries; keys that are not integers; or
                an index that was not built, or whose last build or absorb failed.
        """
        return self._search_store(self._store, queries, k, exclude, allow)

    def _search_store(
        self,
        store: Store,
        queries: np.ndarray,
        k: int,
        exclude: Ragged | None,
        allow: np.ndarray | None,
    ) -> Candidates:
        """`search` among the items of one store."""
        queries = self._checked_queries(queries)
        k = min(whole_number(k, "k", 1), max(len(store), 1))
        built, fresh = store.built, store.fresh
        if exclude is not None:
            exclude = checked_exclude(exclude, len(queries))
        if allow is not None:
            allow = checked_keys(allow, "allow")
        if exclude is None and allow is None and not store.is_changed:
            found = self._search_plain(built, queries, k)
            if found is not None:
                return found
        positions, scores = self._search_allowed(store, queries, k, exclude, allow)
        keys = built.keys_of(positions)
        if not len(fresh):
            if not self.is_exact:  # an exact scan has ordered them
                order_ties(keys, scores)
            return Candidates(keys, scores, (positions >= 0).sum(1))
        is_allowed = None if allow is None else np.isin(fresh.keys, allow)
        excluded = None if exclude is None else fresh.pairs(exclude)
        positions, fresh_scores = fresh.best(queries, k, is_allowed, excluded)
        keys = np.concatenate([keys, fresh.keys_of(positions)], axis=1)
        return Candidates.rank(keys, np.concatenate([scores, fresh_scores], axis=1), k)

    def _search_allowed(
        self,
        store: Store,
        queries: np.ndarray,
        k: int,
        exclude: Ragged | None,
        allow: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions `[num_queries, k]` among the built vectors, -1 past the last, and scores."""
        built, is_allowed = store.built, store.is_allowed(allow)
        if self.is_exact:
            excluded = None if exclude is None else built.pairs(exclude)
            positions, scores = built.best(queries, k, is_allowed, excluded)
            return widened(positions, k, -1), widened(scores, k, NO_SCORE)
        return search_allowed(
            self._search,
            built,
            queries,
            k,
            is_allowed,
            store.count_allowed(is_allowed),
            exclude,
            self.distances_per_candidate,
        )

    def _search_plain(self, built: KeyedVectors, queries: np.ndarray, k: int) -> Candidates | None:
        """The backend's answer if no built vector is excluded; None if a row is short."""
        if not len(queries):
            return None
        positions, scores = self._search(queries, k)
        if positions[:, -1].min() < 0:
            return None
        keys = built.keys_of(positions)
        order_ties(keys, scores)
        return Candidates(keys, scores, np.full(len(keys), k))

    def search_built(self, queries: np.ndarray, k: int, exact: bool = False) -> Candidates:
        """What the backend alone finds among the vectors that it was built from, to measure it.

        Later updates are ignored, and short rows stay short. Items that were removed before the
        last `absorb` do not count among the `k`, as in `search`.

        Args:
            queries: `[num_queries, dim]`, as in `search`.
            k: As in `search`.
            exact: Whether to scan exactly instead, for the answer to compare with.
        """
        queries, store = self._checked_queries(queries), self._store
        built = store.built
        k = min(whole_number(k, "k", 1), len(built))
        if exact:
            positions, scores = built.best(queries, k, built.keys >= 0)
        else:
            num_answers = len(built) - store.num_keyless
            fetch = int(filtered_fetch(np.array(k), num_answers, len(built)))
            positions, scores = self._search(queries, fetch)
        return Candidates.rank(built.keys_of(positions), scores, k)

    def save(self, directory: pathlib.Path) -> None:
        """Writes plain files into a folder that exists.

        Call `build.save` instead: it adds a description and checksums, and replaces a folder
        safely.
        """
        self._require_built()
        self._store.save(directory)
        self._save(directory)

    def load(self, directory: pathlib.Path, mmap: bool = False) -> Self:
        """Reads what `save` wrote, and returns itself. Call `build.load` instead, which checks
        first.

        Args:
            directory: The folder.
            mmap: Whether the float32 vectors stay on disk until an exact scan needs them.

        Raises:
            ValueError: Files of other shapes or types than `save` writes.
        """
        self._store = Store.load(directory, self.metric, mmap, self.can_forget)
        self._load(directory)
        return self

    def sibling(self) -> Self:
        """Another index over the same backend. Items added to one or removed from it do not change
        the other. Neither may `absorb` from then on."""
        sibling = object.__new__(type(self))
        vars(sibling).update(vars(self))
        return sibling

    def __reduce_ex__(self, protocol):
        # A pickle or copy would lack the library's index, which only its files hold whole.
        raise TypeError(
            f"{type(self).__name__} is neither pickled nor copied. Save it by twotower.retrieval."
            "build.save, and give the other process the folder for build.load (with mmap=True they "
            "share the vectors in memory)."
        )

    def _require_built(self) -> None:
        if not self.dim:
            raise ValueError("the index is empty: call build or load first.")
        if self._is_half_built:
            raise ValueError(
                "a build or absorb of this index failed half-way: call build(*index.live())."
            )

    def _checked_queries(self, queries: np.ndarray) -> np.ndarray:
        """`[num_queries, dim]` float32, of length 1 under cosine."""
        self._require_built()
        queries = np.asarray(queries)
        if queries.ndim != 2 or queries.shape[1] != self.dim or queries.dtype.kind != "f":
            raise ValueError(
                f"Expected queries [num_queries, {self.dim}] of floats; got {queries.shape} of "
                f"{queries.dtype}. Was the index built from this query tower?"
            )
        return checked_rows(queries, self.metric, "queries in rows")
