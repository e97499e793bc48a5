"""Candidates: what every retriever, source and ranker answers. Numpy only."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twotower.ragged import Ragged

# Key and score past the end of a row.
NO_KEY = -1
NO_SCORE = np.float32(-np.inf)


def best_columns(keys: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the best `k` of each row, by descending score, then by ascending key.

    Args:
        keys: `[num_queries, n]`, or `[n]` for all queries alike.
        scores: `[num_queries, n]`; NaN counts as less than -inf.
        k: 1 or more.

    Returns:
        `[num_queries, min(n, k)]` int64.

    >>> best_columns(np.array([8, 5, 7]), np.float32([[1, 1, 2]]), k=2).tolist()
    [[2, 1]]
    """
    if scores.shape[1] <= 2 * k:
        # lexsort's last key is the first criterion.
        return np.lexsort((np.broadcast_to(keys, scores.shape), -scores), axis=1)[:, :k]
    row = np.arange(len(scores))[:, None]
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best = scores[row, top]
    # Of equal scores at the cut, argpartition takes any: such rows are sorted whole.
    cut = best.min(1, keepdims=True)
    tied = ((scores >= cut).sum(1) > k) & (cut[:, 0] > NO_SCORE)
    if tied.any():
        whole = np.broadcast_to(keys, scores.shape)[tied]
        top[tied] = np.lexsort((whole, -scores[tied]), axis=1)[:, :k]
        best = scores[row, top]
    order = np.lexsort((keys[top] if keys.ndim == 1 else keys[row, top], -best), axis=1)
    return top[row, order]


def best_of_dense(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the best `k` of each row, and their scores, both `[num_queries, min(n, k)]`.

    The order is that of `best_columns` for ascending keys, in half the time: score and column are
    packed into one number, so a plain sort puts both in order.

    Args:
        scores: `[num_queries, n]` float32 without NaN. A column of -inf is never among the best;
            column 0 and -inf stand where there are no more.
        k: 1 or more.

    >>> columns, best = best_of_dense(np.float32([[1, -np.inf, 3, 1]]), k=4)
    >>> columns.tolist(), best.tolist()
    ([[2, 0, 3, 0]], [[3.0, 1.0, 1.0, -inf]])
    """
    num_rows, num_columns = scores.shape
    k = min(k, num_columns)
    if not num_rows or not k:
        return np.zeros((num_rows, k), np.int64), np.zeros((num_rows, k), np.float32)
    keep, counts = _best_cells(scores, k)
    cells = np.flatnonzero(keep)
    found = scores.ravel()[cells] + np.float32(0)  # makes 0 of -0, which is equal to it
    bits = found.view(np.uint32)
    # Ascending in these bits is descending in the scores.
    packed = np.where(bits >> 31, bits, bits ^ 0x7FFFFFFF).astype(np.uint64) << 32
    packed |= (cells % num_columns).astype(np.uint64)
    is_short = counts.min() < k
    if is_short:  # all ones are larger than any score and column
        padded = np.full((num_rows, k), np.iinfo(np.uint64).max)
        padded[np.arange(k) < counts[:, None]] = packed
        packed = padded
    packed = packed.reshape(num_rows, k)
    packed.sort(axis=1)
    bits = (packed >> 32).astype(np.uint32)
    best = np.where(bits >> 31, bits, bits ^ 0x7FFFFFFF).view(np.float32)
    columns = (packed & 0xFFFFFFFF).astype(np.int64)
    if is_short:
        is_end = np.arange(k) >= counts[:, None]
        columns[is_end], best[is_end] = 0, NO_SCORE
    return columns, best


def _best_cells(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Which cells are among the best `k` of their row, `[num_queries, n]` bool, and their number in
    each row, `[num_queries]`."""
    keep = scores > NO_SCORE
    counts = np.count_nonzero(keep, axis=1)
    if counts.max() <= k:
        return keep, counts
    last = scores.shape[1] - k
    cut = np.partition(scores, last, axis=1)[:, last, None]
    keep &= scores >= cut
    counts = np.count_nonzero(keep, axis=1)
    if counts.max() > k:  # of equal scores at the cut, those of the first columns
        tied = np.flatnonzero(counts > k)
        above = scores[tied] > cut[tied]
        left = k - above.sum(1, keepdims=True)
        keep[tied] = above | (keep[tied] & (np.cumsum(keep[tied] & ~above, axis=1) <= left))
        counts[tied] = k
    return keep, counts


def widened(values: np.ndarray, width: int, fill: Any) -> np.ndarray:
    """`values` `[num_rows, n]` with columns of `fill` appended, up to `width` columns."""
    missing = width - values.shape[1]
    if missing <= 0:
        return values
    return np.concatenate([values, np.full((len(values), missing), fill, values.dtype)], axis=1)


def order_ties(keys: np.ndarray, scores: np.ndarray) -> None:
    """Sorts equal scores by key, in place.

    Args:
        keys: `[num_rows, n]`.
        scores: `[num_rows, n]`, each row descending. It is fast if few rows have ties.
    """
    equal = scores[:, 1:] == scores[:, :-1]
    if np.count_nonzero(equal):  # the quickest look there is
        tied = np.flatnonzero(equal.any(1))
        order = np.lexsort((keys[tied], -scores[tied]), axis=1)
        keys[tied] = np.take_along_axis(keys[tied], order, 1)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Ranked items for a batch of queries.

    A row may be short, if the catalogue is small or all other items are excluded. `counts` says
    where it ends, and the rest is -1 and -inf: never a repeat, an excluded item or an error.

    Attributes:
        keys: `[num_queries, k]` int64 item keys, best first, -1 past `counts`.
        scores: `[num_queries, k]` float32, larger is better, descending, -inf past `counts`. Equal
            scores stand in ascending order of their keys.
        counts: `[num_queries]` int64, how many of the `k` columns are filled.
        columns: Further values an item carries through a funnel (the source it came from, its rank
            there), name -> `[num_queries, k]`.

    >>> found = Candidates.rank(np.array([[5, 3, 8]]), np.float32([[1, 4, 2]]), k=2)
    >>> found.keys.tolist(), found.scores.tolist(), found.counts.tolist()
    ([[3, 8]], [[4.0, 2.0]], [2])
    >>> found.mask(found.keys != 3).keys.tolist()
    [[8, -1]]
    """

    keys: np.ndarray
    scores: np.ndarray
    counts: np.ndarray
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scores.shape == self.keys.shape and not self.columns:
            others = {}  # the usual case, at every search
        else:
            others = {"scores": self.scores, **self.columns}
        for name, values in others.items():
            if values.shape != self.keys.shape:
                raise ValueError(
                    f"{name} must have the shape of keys, {self.keys.shape}; got {values.shape}."
                )
        if self.counts.shape != self.keys.shape[:1]:
            raise ValueError(f"counts must be [{len(self.keys)}]; got {self.counts.shape}.")

    @classmethod
    def rank(
        cls,
        keys: np.ndarray,
        scores: np.ndarray,
        k: int,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> "Candidates":
        """Sorts unordered finds and keeps the best `k` of each row.

        Args:
            keys: `[num_queries, n]` int64; -1 marks a find to drop.
            scores: `[num_queries, n]` float32; -inf and NaN mark finds to drop, too.
            k: Width of the answer, 1 or more; `n` may be smaller.
            columns: Name -> `[num_queries, n]`.

        Raises:
            ValueError: k < 1.

        >>> found = Candidates.rank(np.array([[4, 2, -1, 3]]), np.float32([[1, 1, 9, 2]]), k=3)
        >>> found.keys.tolist(), found.counts.tolist()
        ([[3, 2, 4]], [3])
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more; got {k}.")
        scores = np.where(keys == NO_KEY, NO_SCORE, scores).astype(np.float32, copy=False)
        order = best_columns(keys, scores, k)  # [num_queries, min(n, k)]
        scores = np.take_along_axis(scores, order, 1)
        filled = scores > NO_SCORE  # -inf and NaN were sorted to the end
        found = {
            name: widened(np.take_along_axis(values, order, 1), k, values.dtype.type())
            for name, values in (columns or {}).items()
        }
        keys = np.where(filled, np.take_along_axis(keys, order, 1), NO_KEY)
        return cls(
            widened(keys.astype(np.int64, copy=False), k, NO_KEY),
            widened(np.where(filled, scores, NO_SCORE), k, NO_SCORE),
            filled.sum(1),
            found,
        )

    @classmethod
    def of_scores(
        cls,
        scores: np.ndarray,
        k: int,
        exclude: Ragged | None = None,
        allow: np.ndarray | None = None,
    ) -> "Candidates":
        """The best `k` items of dense scores.

        Args:
            scores: `[num_queries, num_items]` floats, a column for each key, larger is better; -inf
                marks what may not be answered. Those that are float32 are overwritten.
            k: Width of the answer, 1 or more.
            exclude: Keys that may not be answered, a row for each query.
            allow: `[num_allowed]` keys that may be answered, for all queries alike.

        Raises:
            ValueError: Scores that are NaN or have another number of rows than `exclude`.

        >>> scores = np.float32([[3, 1, 2]])
        >>> Candidates.of_scores(scores, k=2, exclude=Ragged.from_rows([[0]])).keys.tolist()
        [[2, 1]]
        """
        scores = np.asarray(scores, np.float32)
        rows = len(scores) if exclude is None else len(exclude)
        if scores.ndim != 2 or len(scores) != rows or np.isnan(scores).any():
            raise ValueError(
                f"expected scores [{rows}, num_items] without NaN; got {scores.shape} with "
                f"{int(np.isnan(scores).sum())} NaN."
            )
        if allow is not None:
            forbidden = np.ones(scores.shape[1], bool)
            forbidden[allow] = False
            scores[:, forbidden] = NO_SCORE
        if exclude is not None:
            scores[exclude.row_index, exclude.values] = NO_SCORE
        columns, best = best_of_dense(scores, k)
        filled = best > NO_SCORE
        return cls(
            widened(np.where(filled, columns, NO_KEY), k, NO_KEY),
            widened(best, k, NO_SCORE),
            filled.sum(1),
        )

    @classmethod
    def empty(cls, num_queries: int, k: int = 0) -> "Candidates":
        """Answers in which nothing was found, `[num_queries, k]`."""
        shape = num_queries, k
        counts = np.zeros(num_queries, np.int64)
        return cls(np.full(shape, NO_KEY), np.full(shape, NO_SCORE), counts)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def valid(self) -> np.ndarray:
        """Which entries are filled, `[num_queries, k]` bool."""
        return np.arange(self.keys.shape[1]) < self.counts[:, None]

    def head(self, k: int) -> "Candidates":
        """The first `k` of each row."""
        return Candidates(
            self.keys[:, :k],
            self.scores[:, :k],
            np.minimum(self.counts, k),
            {name: values[:, :k] for name, values in self.columns.items()},
        )

    def take(self, rows: np.ndarray) -> "Candidates":
        """The rows of the queries `rows`: indices `[n]`, or a boolean mask `[num_queries]`."""
        return Candidates(
            self.keys[rows],
            self.scores[rows],
            self.counts[rows],
            {name: values[rows] for name, values in self.columns.items()},
        )

    def mask(self, keep: np.ndarray) -> "Candidates":
        """Keeps the entries where `keep` `[num_queries, k]` holds, closing the gaps."""
        keep = keep & self.valid
        counts = keep.sum(1)
        if (counts == self.counts).all():
            return self
        # A stable sort of "dropped" moves the kept to the front in their order.
        order = np.argsort(~keep, axis=1, kind="stable")
        valid = np.arange(keep.shape[1]) < counts[:, None]
        return Candidates(
            np.where(valid, np.take_along_axis(self.keys, order, 1), NO_KEY),
            np.where(valid, np.take_along_axis(self.scores, order, 1), NO_SCORE),
            counts,
            {name: np.take_along_axis(v, order, 1) for name, v in self.columns.items()},
        )

    @staticmethod
    def concat(parts: Sequence["Candidates"]) -> "Candidates":
        """Stacks answers to further queries; all have the same columns.

        It is as wide as the widest part.
        """
        width = max(part.keys.shape[1] for part in parts)

        def stacked(values: list[np.ndarray], fill: Any) -> np.ndarray:
            return np.concatenate([widened(some, width, fill) for some in values])

        return Candidates(
            stacked([part.keys for part in parts], NO_KEY),
            stacked([part.scores for part in parts], NO_SCORE),
            np.concatenate([part.counts for part in parts]),
            {
                name: stacked([part.columns[name] for part in parts], values.dtype.type())
                for name, values in parts[0].columns.items()
            },
        )
