"""Retriever: the one contract of all indexes. A backend file only finds neighbours.

Positions and keys are different words here: a backend knows the rows of the matrix it was built
from (positions); this file knows which item each of them is (keys).
"""

import abc
import pathlib

import numpy as np

from twotower.ragged import Ragged
from twotower.retrieval.candidates import NO_KEY, NO_SCORE, Candidates

METRICS = ("dot", "cosine", "euclidean")

# An exact scan takes at most this many score bytes at a time.
BLOCK_BYTES = 1 << 26


class Retriever(abc.ABC):
    """Finds the items whose vectors score highest with a query's.

    Items can be added, replaced and removed at any time: new vectors go to a buffer that is
    scanned exactly with every search, removed ones get a tombstone.

    Args:
        metric: `dot`, `cosine`, or `euclidean`, whose score is the negative squared distance.
            Larger is better in all three.

    Raises:
        ValueError: An unknown metric.
    """

    # Whether answers are exact by construction.
    is_exact = False

    def __init__(self, metric: str = "dot") -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {METRICS}; got {metric!r}.")
        self.metric = metric
        self._set(np.empty(0, np.int64), np.empty((0, 0), np.float32))

    # What a backend defines.

    @abc.abstractmethod
    def _build(self, vectors: np.ndarray) -> None:
        """Indexes `[num_items, dim]` float32 (of length 1 under cosine)."""

    @abc.abstractmethod
    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions `[num_queries, k]` int64 (-1 behind the end) and scores, best first; k is at
        most the number of vectors built."""

    def _save(self, directory: pathlib.Path) -> None:  # noqa: B027 (most backends have none)
        """Writes the backend's own files."""

    def _load(self, directory: pathlib.Path) -> None:
        """Reads them; keys and vectors are there already."""
        self._build(self._vectors)

    @property
    def _backend_bytes(self) -> int:
        """Memory of the backend besides the vectors that this class keeps."""
        return 0

    # What everybody calls.

    def build(self, keys: np.ndarray, vectors: np.ndarray) -> "Retriever":
        """Indexes vectors anew; returns self.

        Args:
            keys: `[num_items]` int64, no duplicates, none negative.
            vectors: `[num_items, dim]` float32; kept without a copy where they are float32.

        Raises:
            ValueError: Duplicate or negative keys, another number of vectors than keys, vectors
                that are not finite, no items, or a zero vector under cosine.
        """
        keys, vectors = _checked_items(keys, vectors)
        if len(keys) == 0:
            raise ValueError("an index needs one item or more to know its dimension; got none.")
        self._set(keys, self._prepared(vectors))
        self._build(self._vectors)
        return self

    def _set(self, keys, vectors, dead=None, fresh_keys=None, fresh_vectors=None) -> None:
        """All state besides the backend's."""
        self._vectors = vectors
        # A last -1, so that the position -1 (nothing found) becomes the key -1 by indexing.
        self._keys = np.append(keys, NO_KEY)
        self._identity = len(keys) == 0 or (keys[0] == 0 and (np.diff(keys) == 1).all())
        self._order = None if self._identity else np.argsort(keys)
        self._dead = np.zeros(len(keys), bool) if dead is None else dead
        self._fresh_keys = np.empty(0, np.int64) if fresh_keys is None else fresh_keys
        self._fresh = (
            np.empty((0, self.dim), np.float32) if fresh_vectors is None else fresh_vectors
        )
        self._num_dead = int(self._dead.sum())

    STATE = ("keys", "vectors", "dead", "fresh_keys", "fresh_vectors")

    def state(self) -> dict[str, np.ndarray]:
        """Everything besides the backend's files, by the names in `STATE`."""
        arrays = (self._keys[:-1], self._vectors, self._dead, self._fresh_keys, self._fresh)
        return dict(zip(self.STATE, arrays))

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of `state`; the backend's files are read after it."""
        self._set(*(state[name] for name in self.STATE))

    @property
    def dim(self) -> int:
        """Length of the vectors; 0 before `build`."""
        return self._vectors.shape[1]

    def __len__(self) -> int:
        """Items that a search may find."""
        return len(self._vectors) + len(self._fresh_keys) - self._num_dead if self.dim else 0

    @property
    def keys(self) -> np.ndarray:
        """Keys of the items that a search may find, ascending."""
        return np.sort(np.concatenate([self._keys[:-1][~self._dead], self._fresh_keys]))

    @property
    def memory_bytes(self) -> int:
        """Bytes of the backend, of the float32 vectors for exact scans, and of the keys."""
        arrays = (self._vectors, self._keys, self._dead, self._fresh_keys, self._fresh)
        return self._backend_bytes + sum(array.nbytes for array in arrays)

    def add(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Adds items or replaces their vectors; the next search finds them.

        Raises:
            ValueError: As in `build`; nothing is changed then.
        """
        self._check_built()
        keys, vectors = _checked_items(keys, vectors, self.dim)
        vectors = self._prepared(vectors)
        self._drop(keys)
        self._fresh_keys = np.concatenate([self._fresh_keys, keys])
        self._fresh = np.concatenate([self._fresh, vectors])

    def remove(self, keys: np.ndarray) -> None:
        """Removes items; the next search does not find them.

        Raises:
            ValueError: A key that is not in the index; nothing is changed then.
        """
        self._check_built()
        keys = _integers("keys", keys)
        unknown = ~np.isin(keys, self.keys)
        if unknown.any():
            raise ValueError(f"keys {keys[unknown][:5].tolist()} are not in the index.")
        self._drop(keys)

    def _drop(self, keys: np.ndarray) -> None:
        position = self._positions(keys)
        self._dead = self._dead.copy()  # a search under way in another thread keeps its own
        self._dead[position[position >= 0]] = True
        self._num_dead = int(self._dead.sum())
        keep = ~np.isin(self._fresh_keys, keys)
        self._fresh_keys, self._fresh = self._fresh_keys[keep], self._fresh[keep]

    def _positions(self, keys: np.ndarray) -> np.ndarray:
        """Positions of keys in the built matrix, -1 for others."""
        num = len(self._vectors)
        if self._identity:
            return np.where((keys >= 0) & (keys < num), keys, -1)
        place = np.minimum(np.searchsorted(self._keys[:-1], keys, sorter=self._order), num - 1)
        place = self._order[place]
        return np.where(self._keys[place] == keys, place, -1)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude: Ragged | None = None,
        allow: np.ndarray | None = None,
    ) -> Candidates:
        """The best `k` items of each query.

        Args:
            queries: `[num_queries, dim]` float32; taken as they are where contiguous.
            k: 1 or more. Where fewer are left, rows are short: -1 and -inf fill them up.
            exclude: A row of keys a query that must not be answered; unknown keys are no error.
            allow: Keys that may be answered, for all queries alike; unknown ones are no error.

        Raises:
            ValueError: Queries of another dimension or not finite, k < 1, another number of
                exclusion rows than queries, an index without `build`, a zero query under cosine.
        """
        queries, k = self._checked_queries(queries, k), int(k)
        allow = None if allow is None else _integers("allow", allow)
        if exclude is not None:
            if len(exclude) != len(queries):
                raise ValueError(
                    f"exclude has {len(exclude)} rows for {len(queries)} queries; give one a query."
                )
            if len(exclude.values) == 0:
                exclude = None
        if len(queries) == 0:
            return _widened(Candidates.rank(*_nothing(0), k), k)
        if exclude is None and allow is None and not self._num_dead and not len(self._fresh_keys):
            fetch = min(k, len(self._vectors))
            positions, scores = self._search(queries, fetch)
            keys = positions if self._identity else self._keys[positions]
            found = _packed(keys, scores)
            short = np.flatnonzero(found.counts < fetch)
            if len(short):
                # A graph or a partition does not reach everything, an exact scan does.
                every = np.arange(len(self._vectors))
                rescued = self._scan(queries[short], every, k, np.empty(0, np.int64))
                found = _replace(found, short, rescued)
            return _widened(found, k)
        return _widened(self._filtered(queries, k, exclude, allow), k)

    def _filtered(self, queries, k, exclude, allow) -> Candidates:
        num = len(self._vectors)
        open_ = ~self._dead
        fresh_open = np.ones(len(self._fresh_keys), bool)
        if allow is not None:
            allowed = np.zeros(num, bool)
            position = self._positions(allow)
            allowed[position[position >= 0]] = True
            open_ = open_ & allowed
            fresh_open = np.isin(self._fresh_keys, allow)
        num_open = int(open_.sum())
        widest = 0 if exclude is None else int(exclude.lengths.max())
        # What is to be dropped is spread over the answer about as over the catalogue.
        fetch = min(num, int(1.2 * (k + widest) * num / max(num_open, 1)) + 1)
        if num_open < num:
            fetch = min(num, fetch + 16)
        else:
            fetch = min(num, k + widest)
        banned = self._banned(exclude)
        if num_open == 0:
            found = Candidates.rank(*_nothing(len(queries)), k)
        elif 4 * fetch >= num or num_open <= max(1000, fetch):
            found = self._scan(queries, np.flatnonzero(open_), k, banned)
        else:
            positions, scores = self._search(queries, fetch)
            keep = (positions >= 0) & open_[positions] & ~_member(positions, banned, num)
            keys = np.where(keep, self._keys[positions], NO_KEY)
            found = Candidates.rank(keys, scores, k)
            if not self.is_exact or fetch < num:
                # Rows that fell short of what is open are scanned; filters can be anywhere.
                left = num_open - np.bincount(banned // num, minlength=len(queries))
                short = np.flatnonzero(found.counts < np.minimum(k, left))
                if len(short):
                    rows = np.isin(banned // num, short)
                    at = np.searchsorted(short, banned[rows] // num) * num + banned[rows] % num
                    rescued = self._scan(queries[short], np.flatnonzero(open_), k, at)
                    found = _replace(found, short, rescued)
        if fresh_open.any():
            found = self._with_fresh(found, queries, k, exclude, fresh_open)
        return found

    def _banned(self, exclude: Ragged | None) -> np.ndarray:
        """Excluded positions as ascending numbers `row * num + position`, without duplicates."""
        if exclude is None:
            return np.empty(0, np.int64)
        position = self._positions(exclude.values)
        banned = exclude.row_index * len(self._vectors) + position
        return np.unique(banned[(position >= 0) & ~self._dead[position]])

    def _with_fresh(self, found, queries, k, exclude, fresh_open) -> Candidates:
        """Merges the buffer's items in, scored exactly."""
        keys = self._fresh_keys[fresh_open]
        scores = self._scores(queries, self._fresh[fresh_open])
        if exclude is not None:
            order = np.argsort(keys)
            place = np.searchsorted(keys, exclude.values, sorter=order)
            column = order[np.minimum(place, len(keys) - 1)]
            hit = keys[column] == exclude.values
            scores[exclude.row_index[hit], column[hit]] = NO_SCORE
        keys = np.broadcast_to(keys, scores.shape)
        return Candidates.rank(
            np.concatenate([found.keys, keys], 1), np.concatenate([found.scores, scores], 1), k
        )

    def _scores(self, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """`[num_queries, num_vectors]`, larger is better."""
        scores = queries @ vectors.T
        if self.metric == "euclidean":
            scores *= 2
            scores -= np.einsum("nd,nd->n", vectors, vectors)
            scores -= np.einsum("nd,nd->n", queries, queries)[:, None]
        return scores

    def _scan(self, queries, positions: np.ndarray, k: int, banned: np.ndarray) -> Candidates:
        """Exact search over the vectors at `positions` (ascending), blockwise."""
        whole = len(positions) == len(self._vectors)
        vectors = self._vectors if whole else self._vectors[positions]
        keys = self._keys[positions]
        num, block = len(self._vectors), max(1, BLOCK_BYTES // (4 * len(positions)))
        parts = []
        for start in range(0, len(queries), block):
            scores = self._scores(queries[start : start + block], vectors)
            rows = slice(*np.searchsorted(banned, (start * num, (start + len(scores)) * num)))
            row, position = banned[rows] // num - start, banned[rows] % num
            column = position if whole else np.searchsorted(positions, position)
            if not whole:
                column = np.minimum(column, len(positions) - 1)
                inside = positions[column] == position
                row, column = row[inside], column[inside]
            scores[row, column] = NO_SCORE
            parts.append(Candidates.rank(np.broadcast_to(keys, scores.shape), scores, k))
        return Candidates.concat(parts)

    def _prepared(self, vectors: np.ndarray) -> np.ndarray:
        if self.metric != "cosine":
            return vectors
        # In float64: squares of float32 may overflow or vanish.
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))[:, None]
        if (norms == 0).any():
            raise ValueError("a zero vector has no direction, so cosine cannot score it.")
        return (vectors / norms).astype(np.float32)

    def _check_built(self) -> None:
        if not self.dim:
            raise ValueError("the index is empty: call build or load first.")

    def _checked_queries(self, queries: np.ndarray, k: int) -> np.ndarray:
        self._check_built()
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k must be an integer of 1 or more; got {k!r}.")
        queries = np.asarray(queries)
        if queries.ndim != 2 or queries.shape[1] != self.dim or queries.dtype.kind != "f":
            raise ValueError(
                f"Expected queries [num_queries, {self.dim}] of floats; got {queries.shape} of "
                f"{queries.dtype}. Was the index built from this query tower?"
            )
        with np.errstate(over="ignore"):
            queries = np.ascontiguousarray(queries, np.float32)
        # One sum is NaN or infinite if any value is.
        with np.errstate(invalid="ignore"):
            total = queries.sum(dtype=np.float64)
        if not np.isfinite(total):
            raise ValueError("queries hold NaN or infinite values.")
        return self._prepared(queries)


def _checked_items(keys, vectors, dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    keys, vectors = np.asarray(keys), np.asarray(vectors)
    if keys.ndim != 1 or (keys.size and keys.dtype.kind not in "iu"):
        raise ValueError(f"keys must be [num_items] integers; got {keys.shape} of {keys.dtype}.")
    expected = f"[{len(keys)}, {dim or 'dim'}]"
    if (
        vectors.ndim != 2
        or len(vectors) != len(keys)
        or vectors.shape[1] != (dim or vectors.shape[1])
        or vectors.shape[1] == 0
    ):
        raise ValueError(f"Expected vectors {expected}, one a key; got {vectors.shape}.")
    if vectors.dtype.kind != "f":
        raise ValueError(f"vectors must be floats; got {vectors.dtype}.")
    keys = keys.astype(np.int64)
    if len(keys) and keys.min() < 0:
        raise ValueError(f"keys must not be negative; got {keys.min()}.")
    unique, counts = np.unique(keys, return_counts=True)
    if len(unique) < len(keys):
        raise ValueError(f"keys must be unique; {unique[counts > 1][:5].tolist()} stand twice.")
    with np.errstate(over="ignore"):  # a float64 may be infinite as a float32
        vectors = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        wrong = keys[~np.isfinite(vectors).all(1)]
        raise ValueError(f"vectors of keys {wrong[:5].tolist()} hold NaN or infinite values.")
    return keys, vectors


def _integers(name: str, values) -> np.ndarray:
    values = np.asarray(values)
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers; got {values.dtype}.")
    return values.astype(np.int64)


def _packed(keys: np.ndarray, scores: np.ndarray) -> Candidates:
    """An answer in its order; ties are put in order of their keys."""
    if (scores[:, 1:] == scores[:, :-1]).any() or (keys < 0).any():
        return Candidates.rank(keys, scores, keys.shape[1])
    return Candidates(keys, scores, np.full(len(keys), keys.shape[1], np.int64))


def _member(positions: np.ndarray, banned: np.ndarray, num: int) -> np.ndarray:
    """Which of `positions` `[num_queries, n]` stand in `banned` (ascending `row * num + pos`)."""
    if not len(banned):
        return np.zeros(positions.shape, bool)
    at = np.arange(len(positions))[:, None] * num + positions
    place = np.minimum(np.searchsorted(banned, at), len(banned) - 1)
    return banned[place] == at


def _nothing(num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty((num_queries, 0), np.int64), np.empty((num_queries, 0), np.float32)


def _widened(found: Candidates, width: int) -> Candidates:
    """`found` with empty places up to `width`."""
    more = ((0, 0), (0, width - found.keys.shape[1]))
    if more[1][1] <= 0:
        return found
    keys = np.pad(found.keys, more, constant_values=NO_KEY)
    return Candidates(keys, np.pad(found.scores, more, constant_values=NO_SCORE), found.counts)


def _replace(found: Candidates, rows: np.ndarray, by: Candidates) -> Candidates:
    """`found` with the given rows replaced; widths may differ."""
    width = max(found.keys.shape[1], by.keys.shape[1])
    found, by = _widened(found, width), _widened(by, width)
    keys, scores, counts = found.keys.copy(), found.scores.copy(), found.counts.copy()
    keys[rows], scores[rows], counts[rows] = by.keys, by.scores, by.counts
    return Candidates(keys, scores, counts)
