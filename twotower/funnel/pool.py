"""Pool: what several sources found for the same requests, every item once."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from twotower.retrieval.candidates import NO_KEY, Candidates


@dataclasses.dataclass(frozen=True)
class Pool:
    """The union of several sources' candidates, a row a request, every item once a row.

    Attributes:
        names: Names of the sources, `num_sources` of them.
        keys: `[num_requests, width]` int64, ascending along a row, -1 behind its end.
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
        """The union of answers to the same requests; a source's repeats of an item are dropped.

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
        rank = np.concatenate([np.arange(1, width + 1, dtype=np.int32) for width in widths])[column]
        scores = np.concatenate([part.scores for part in parts], axis=1)
        scores = np.take_along_axis(scores, column, axis=1)
        is_first = np.ones(keys.shape, bool)
        is_first[:, 1:] = keys[:, 1:] != keys[:, :-1]
        is_find = keys != nothing
        # Finds of one item stand by source and rank, so a source's repeats follow its first.
        is_find[:, 1:] &= is_first[:, 1:] | (source[:, 1:] != source[:, :-1])
        place = np.cumsum(is_first, axis=1) - 1
        width = int(place[is_find].max(initial=-1)) + 1
        row = np.broadcast_to(np.arange(num_rows)[:, None], keys.shape)[is_find]
        place, source = place[is_find], source[is_find]
        shape = len(parts), num_rows, width
        pool_keys = np.full((num_rows, width), NO_KEY)
        pool_ranks, pool_scores = np.zeros(shape, np.int32), np.full(shape, np.nan, np.float32)
        pool_keys[row, place] = keys[is_find]
        pool_ranks[source, row, place] = rank[is_find]
        pool_scores[source, row, place] = scores[is_find]
        return cls(tuple(found), pool_keys, pool_ranks, pool_scores)

    def best(self, scores: np.ndarray, k: int, keep: Mapping[str, int] | None = None) -> Candidates:
        """The `k` items of each request with the highest scores `[num_requests, width]`.

        The columns `<source>_rank` and `<source>_score` say who found an item, and how.

        Args:
            scores: Larger is better.
            k: 1 or more.
            keep: Name of a source -> how many of its first items are among the `k` in any case, at
                the end if their scores are low. Where these alone are more than `k`, some are not.
        """
        columns = {f"{name}_rank": ranks for name, ranks in zip(self.names, self.ranks)}
        columns |= {f"{name}_score": values for name, values in zip(self.names, self.scores)}
        kept = np.zeros(self.keys.shape, bool)
        for name, ranks in zip(self.names, self.ranks):
            kept |= (ranks > 0) & (ranks <= (keep or {}).get(name, 0))
        if not kept.any():
            return Candidates.rank(self.keys, scores, k, columns)
        chosen = np.where(kept, np.float32(np.inf), scores)
        found = Candidates.rank(self.keys, chosen, k, {**columns, "": scores})
        columns = dict(found.columns)
        return Candidates.rank(found.keys, columns.pop(""), k, columns)


def sources_of(candidates: Candidates) -> tuple[str, ...]:
    """Names of the sources that candidates of a funnel carry in their columns."""
    names = (name.removesuffix("_rank") for name in candidates.columns if name.endswith("_rank"))
    return tuple(name for name in names if f"{name}_score" in candidates.columns)
