"""KeyedVectors: item vectors with their keys; looked up, compared and scanned exactly. Numpy only.

Positions and keys are different words: a position is a row of a matrix, a key says which item.
"""

import functools

import numpy as np
from numpy.typing import ArrayLike

from twotower.ragged import Ragged
from twotower.retrieval.arguments import checked_keys, checked_rows
from twotower.retrieval.candidates import NO_KEY, NO_SCORE, best_columns, best_of_dense

METRICS = ("dot", "cosine", "euclidean")

# An exact scan takes at most this many bytes of scores at a time.
MAX_BYTES = 1 << 26


class KeyedVectors:
    """Vectors, one for each key. It is immutable, so threads may share it.

    Args:
        keys: `[num_items]` int64, unique; -1 for vectors that no longer stand for an item.
        vectors: `[num_items, dim]` float32, of length 1 under cosine; may be memory-mapped.
        metric: One of `METRICS`.

    >>> items = KeyedVectors(np.array([30, 20]), np.float32([[1, 0], [0, 1]]), "dot")
    >>> items.positions(np.array([20, 99])).tolist()
    [1, -1]
    >>> items.scores(np.float32([[3, 4]])).tolist()
    [[3.0, 4.0]]
    """

    def __init__(self, keys: np.ndarray, vectors: np.ndarray, metric: str) -> None:
        self.vectors, self.metric = vectors, metric
        # A last -1, so that the position -1 (nothing found) becomes the key -1 by indexing.
        self._keys = np.append(keys, NO_KEY)
        is_range = len(keys) == 0 or (keys[0] == 0 and bool((np.diff(keys) == 1).all()))
        # How keys ascend; None where they are the positions.
        self._order = None if is_range else np.argsort(keys)
        self._is_ascending = is_range or bool((np.diff(keys) > 0).all())

    @classmethod
    def checked(
        cls, keys: ArrayLike, vectors: ArrayLike, metric: str, dim: int | None = None
    ) -> "KeyedVectors":
        """From the arguments of a caller; float32 and contiguous vectors are not copied.

        Raises:
            ValueError: Keys that are not `[num_items]` unique integers of 0 or more; vectors that
                are not `[num_items, dim]` floats, or that `checked_rows` refuses.
        """
        keys, vectors = checked_keys(keys, "keys"), np.asarray(vectors)
        wanted = dim or (vectors.shape[1] if vectors.ndim == 2 else "dim")
        if vectors.shape != (len(keys), wanted) or not wanted:
            raise ValueError(
                f"Expected vectors [{len(keys)}, {wanted or 'dim'}], one a key; got "
                f"{vectors.shape}. Do they come from the item tower that the index was built from?"
            )
        if vectors.dtype.kind != "f":
            raise ValueError(f"vectors must be floats; got {vectors.dtype}.")
        if len(keys) and keys.min() < 0:
            raise ValueError(f"keys must not be negative; got {keys.min()}.")
        unique, counts = np.unique(keys, return_counts=True)
        if len(unique) < len(keys):
            twice = unique[counts > 1][:5].tolist()
            raise ValueError(f"keys must be unique; {twice} stand twice. Which vector is right?")
        return cls(keys, checked_rows(vectors, metric, "vectors of keys", keys), metric)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def keys(self) -> np.ndarray:
        """`[num_items]` int64, by position."""
        return self._keys[:-1]

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[1]

    @property
    def num_bytes(self) -> int:
        """Bytes of keys, their order, and vectors."""
        order = 0 if self._order is None else self._order.nbytes
        return self._keys.nbytes + order + self.vectors.nbytes

    def keys_of(self, positions: np.ndarray) -> np.ndarray:
        """Keys at positions, `[...]` int64 of the same shape; -1 for the position -1."""
        return positions if self._order is None else self._keys[positions]

    def positions(self, keys: np.ndarray) -> np.ndarray:
        """Positions of keys, `[...]` int64 of the same shape; -1 for an unknown key."""
        num = len(self)
        if self._order is None:
            return np.where((keys >= 0) & (keys < num), keys, -1)
        rank = np.searchsorted(self.keys, keys, sorter=self._order)
        position = self._order[np.minimum(rank, num - 1)]
        return np.where((self._keys[position] == keys) & (keys >= 0), position, -1)

    def pairs(self, keys: Ragged) -> np.ndarray:
        """Ragged keys as numbers `row * num_items + position`, `[num_known]` int64, row after row.

        Unknown keys are left out. With one array of numbers a whole batch is excluded without a
        loop.
        """
        position = self.positions(keys.values)
        pairs = keys.row_index * len(self) + position
        return pairs[position >= 0]

    @functools.cached_property
    def _squares(self) -> np.ndarray:
        return np.einsum("nd,nd->n", self.vectors, self.vectors)

    def scores(
        self, queries: np.ndarray, positions: slice | np.ndarray = slice(None)
    ) -> np.ndarray:
        """Scores of the vectors at `positions`, `[num_queries, num_positions]`, larger is better.

        Euclidean is -(|q|^2 - 2 q.v + |v|^2), exact up to float32 rounding of |q|^2 + |v|^2.
        """
        scores = queries @ self.vectors[positions].T
        if self.metric == "euclidean":
            scores *= 2
            scores -= self._squares[positions]
            scores -= np.einsum("nd,nd->n", queries, queries)[:, None]
            np.minimum(scores, 0, out=scores)
        return scores

    def best(
        self,
        queries: np.ndarray,
        k: int,
        is_allowed: np.ndarray | None = None,
        excluded: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact search, a batch of queries at a time.

        Args:
            queries: `[num_queries, dim]` float32.
            k: 1 or more.
            is_allowed: `[num_items]` bool, positions that may be found; None for all.
            excluded: `[num_pairs]`, pairs from `pairs` that must not be found.

        Returns:
            Positions `[num_queries, n]` int64 and scores, best first, equal scores by key. n is at
            most k. A short row ends in -1 and -inf.
        """
        if is_allowed is None or np.count_nonzero(is_allowed) >= len(self) // 2:
            chosen = slice(None)
        else:
            # Few: worth picking them out. Otherwise a scan of all costs less than the copy.
            chosen, is_allowed = np.flatnonzero(is_allowed), None
        keys = self.keys[chosen]
        batch_size = max(1, MAX_BYTES // (4 * max(1, len(keys))))
        if len(queries) <= batch_size:
            return self._best(queries, k, keys, chosen, is_allowed, excluded)
        parts = []
        for start in range(0, len(queries), batch_size):
            part, inside = queries[start : start + batch_size], None
            if excluded is not None:
                first, last = np.array((start, start + len(part))) * len(self)
                inside = excluded[slice(*np.searchsorted(excluded, (first, last)))] - first
            parts.append(self._best(part, k, keys, chosen, is_allowed, inside))
        found, scores = (np.concatenate(part) for part in zip(*parts))
        return found, scores

    def _best(self, queries, k: int, keys, chosen, is_allowed, excluded):
        """One batch of `best`, among the positions `chosen`, which have these `keys`."""
        scores = self.scores(queries, chosen)
        if is_allowed is not None:
            scores[:, ~is_allowed] = NO_SCORE
        if excluded is not None and len(excluded):
            row, column = np.divmod(excluded, len(self))
            if not isinstance(chosen, slice):
                row, column = _inside(row, column, chosen)
            scores[row, column] = NO_SCORE
        if self._is_ascending:
            top, found = best_of_dense(scores, k)
        else:
            top = best_columns(keys, scores, k)
            found = scores[np.arange(len(scores))[:, None], top]
        positions = top if isinstance(chosen, slice) else chosen[top]
        return np.where(found > NO_SCORE, positions, -1), found


def _inside(row: np.ndarray, position: np.ndarray, chosen: np.ndarray):
    """Those pairs whose position is among `chosen` (ascending), with its index there."""
    if not len(chosen):
        return row[:0], position[:0]
    index = np.minimum(np.searchsorted(chosen, position), len(chosen) - 1)
    inside = chosen[index] == position
    return row[inside], index[inside]
