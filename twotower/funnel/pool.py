"""Pool: the union of what several sources found for the same requests."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.retrieval.candidates import NO_KEY, NO_SCORE, Candidates, best_of_dense, widened


@dataclasses.dataclass(frozen=True)
class Pool:
    """The union of the sources' candidates for each request, each item once.

    Attributes:
        names: Names of the sources, `num_sources` of them.
        keys: `[num_requests, width]` int64, ascending along a row, -1 past its end.
        ranks: `[num_sources, num_requests, width]` int32, rank of the item among what the source
            found, from 1; 0 where the source did not find it.
        scores: `[num_sources, num_requests, width]` float32, the source's score; NaN where it did
            not find the item.

    >>> left = Candidates.rank(np.array([[5, 3]]), np.float32([[9, 8]]), k=2)
    >>> right = Candidates.rank(np.array([[3, 7]]), np.float32([[2, 1]]), k=2)
    >>> pool = Pool.of({"left": left, "right": right})
    >>> pool.keys.tolist(), pool.ranks.tolist()
    ([[3, 5, 7]], [[[2, 1, 0]], [[1, 0, 2]]])
    """

    names: tuple[str, ...]
    keys: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, found: Mapping[str, Candidates]) -> "Pool":
        """The union of answers to the same requests. If a source repeats an item, its first rank
        counts.

        Args:
            found: Name of a source -> what it found, at least one.

        Raises:
            ValueError: No sources, or answers to different numbers of requests.
        """
        parts = list(found.values())
        if len({len(part) for part in parts}) != 1:
            counts = {name: len(part) for name, part in found.items()}
            raise ValueError(f"a pool is the union of answers to the same requests; got {counts}.")
        widths = [part.keys.shape[1] for part in parts]
        num_rows, num_columns = len(parts[0]), sum(widths)
        # Key and column in one number: a plain sort brings the finds of an item together.
        bits = max(num_columns, 1).bit_length()
        column, nothing = np.arange(num_columns), np.iinfo(np.int64).max >> bits
        packed = np.concatenate([np.where(p.valid, p.keys, nothing) for p in parts], axis=1)
        packed = (packed << bits) | column
        packed.sort(axis=1)
        keys, column = packed >> bits, packed & ((1 << bits) - 1)
        source = np.repeat(np.arange(len(parts)), widths)[column]
        rank = np.concatenate([np.arange(1, width + 1, dtype=np.int32) for width in widths])
        is_first = np.ones(keys.shape, bool)
        is_first[:, 1:] = keys[:, 1:] != keys[:, :-1]
        is_find = keys != nothing
        # Finds of one item stand by source and rank, so a source's repeats follow its first.
        is_find[:, 1:] &= is_first[:, 1:] | (source[:, 1:] != source[:, :-1])
        place = np.cumsum(is_first, axis=1) - 1
        width = int(place[is_find].max(initial=-1)) + 1
        # From here on tables are flat, so that one index serves all of them.
        finds, row = np.flatnonzero(is_find), np.arange(num_rows)[:, None]
        column, keys = column.ravel()[finds], keys.ravel()[finds]
        scores = np.concatenate([part.scores for part in parts], axis=1).ravel()[
            (row * num_columns).repeat(is_find.sum(1)) + column
        ]
        cell = (place + row * width).ravel()[finds]
        shape = len(parts), num_rows, width
        pool_keys = np.full(num_rows * width, NO_KEY)
        pool_keys[cell] = keys
        cell += source.ravel()[finds] * (num_rows * width)
        pool_ranks, pool_scores = np.zeros(shape, np.int32), np.full(shape, np.nan, np.float32)
        pool_ranks.ravel()[cell], pool_scores.ravel()[cell] = rank[column], scores
        return cls(tuple(found), pool_keys.reshape(num_rows, width), pool_ranks, pool_scores)

    def best(self, scores: np.ndarray, k: int, keep: Mapping[str, int] | None = None) -> Candidates:
        """The `k` items of each request with the highest scores `[num_requests, width]`.

        The columns `<source>_rank` and `<source>_score` have the rank and score of each item at
        each source.

        Args:
            scores: Larger is better.
            k: 1 or more.
            keep: Name of a source -> number of its first items that are among the `k` even if their
                scores are low, or -inf; they are then at the end. If there are more than `k` of
                these, those with the best ranks are kept.
        """
        columns = {f"{name}_rank": ranks for name, ranks in zip(self.names, self.ranks)}
        columns |= {f"{name}_score": values for name, values in zip(self.names, self.scores)}
        # Best rank of an item among the sources that keep it.
        first = np.full(self.keys.shape, np.inf, np.float32)
        for name, ranks in zip(self.names, self.ranks):
            keeps = (ranks > 0) & (ranks <= (keep or {}).get(name, 0))
            first = np.where(keeps, np.minimum(first, ranks), first)
        kept = first < np.inf
        if not kept.any():
            return self._best(scores, k, columns)
        if kept.sum(1).max() > k:
            kept &= first.argsort(axis=1, kind="stable").argsort(axis=1) < k
        # Behind all that the merge scores stand those that it gives no score.
        lowest = scores.min(1, keepdims=True, initial=0, where=scores > NO_SCORE)
        scores = np.where(kept & (scores == NO_SCORE), lowest - first, scores)
        chosen = np.where(kept, np.float32(np.inf), scores)
        found = Candidates.rank(self.keys, chosen, k, {**columns, "": scores})
        columns = dict(found.columns)
        return Candidates.rank(found.keys, columns.pop(""), k, columns)

    def _best(self, scores: np.ndarray, k: int, columns: Mapping[str, np.ndarray]) -> Candidates:
        """As `Candidates.rank`, in half the time, since keys ascend along a row."""
        scores = np.where(self.keys == NO_KEY, NO_SCORE, scores).astype(np.float32, copy=False)
        order, best = best_of_dense(scores, k)
        filled = best > NO_SCORE
        cell = order + np.arange(len(order))[:, None] * scores.shape[1]

        def taken(values: np.ndarray, fill: Any) -> np.ndarray:
            return widened(np.where(filled, values.ravel()[cell], fill), k, fill)

        return Candidates(
            taken(self.keys, NO_KEY),
            widened(best, k, NO_SCORE),
            filled.sum(1),
            {name: taken(values, values.dtype.type()) for name, values in columns.items()},
        )


def sources_of(candidates: Candidates) -> tuple[str, ...]:
    """Names of the sources that a funnel's candidates have columns of."""
    names = (name.removesuffix("_rank") for name in candidates.columns if name.endswith("_rank"))
    return tuple(name for name in names if f"{name}_score" in candidates.columns)
