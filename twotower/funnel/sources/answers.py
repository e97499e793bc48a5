"""Shared by all sources: from scores, or ordered lists, to answers without excluded items.

Batches keep tables of requests and items in the processor's cache, however many requests come.
"""

from collections.abc import Callable

import numpy as np

from twotower.data.requests import Requests
from twotower.funnel.filters import is_among
from twotower.limits import whole_number
from twotower.ragged import Ragged
from twotower.retrieval.candidates import NO_KEY, NO_SCORE, Candidates, best_of_dense, widened

# Cells of a table [requests, items] that is filled at once.
CELLS = 2**21


def in_batches(
    answer: Callable[[Requests], Candidates], requests: Requests, width: int, k: int
) -> Candidates:
    """`answer` of all requests, `CELLS // width` of them at a time.

    Args:
        answer: Requests -> Candidates, `k` columns wide.
        requests: What is asked.
        width: Cells that one request takes.
        k: Columns of the answer to no request at all.
    """
    step = max(1, CELLS // max(width, 1))
    if 0 < len(requests) <= step:
        return answer(requests)
    parts = [answer(part) for part in requests.batches(step)]
    return Candidates.concat(parts) if parts else Candidates.empty(0, k)


def at_most(k: int, num_items: int) -> int:
    """`k`, but no more than there are items, and 1 at least.

    Raises:
        ValueError: `k` is not an integer of 1 or more.
    """
    return min(whole_number(k, "k", 1), max(num_items, 1))


class Columns:
    """Items as the columns of a matrix of scores: keys <-> columns, and scores -> Candidates.

    Args:
        keys: `[num_columns]` int64, ascending; the items that a source may answer.

    >>> columns = Columns(np.array([3, 7]))
    >>> columns.of(Ragged.from_rows([[7, 5, 7], [3]])).values.tolist()
    [1, 1, 0]
    >>> columns.best(np.float32([[1, 2]]), 2, Ragged.from_rows([[9]])).keys.tolist()
    [[7, 3]]
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        # A last -1, for keys that the catalogue got later.
        self._column = np.full(int(keys.max(initial=-1)) + 2, -1)
        self._column[keys] = np.arange(len(keys))

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, rows: Ragged) -> Ragged:
        """Columns of ragged keys, `num_requests` rows in their order; keys without a column are
        dropped."""
        column = self._column[np.minimum(rows.values, len(self._column) - 1)]
        known, found = column >= 0, Ragged(column, rows.offsets)
        return found if known.all() else found.where(known)

    def each_once(self, rows: Ragged) -> Ragged:
        """Columns of ragged keys, `num_requests` rows, each ascending and without repeats; unknown
        keys are dropped."""
        columns, width = self.of(rows), max(len(self), 1)
        pairs = np.sort(columns.row_index * width + columns.values)
        pairs = pairs[np.append(pairs[1:] != pairs[:-1], True)[: len(pairs)]]
        row, column = np.divmod(pairs, width)
        return Ragged.from_lengths(column, np.bincount(row, minlength=len(rows)))

    def best(self, scores: np.ndarray, k: int, exclude: Ragged) -> Candidates:
        """The best `k` of scores `[num_requests, num_columns]`, which are overwritten.

        Args:
            scores: float32 without NaN; -inf marks what may not be answered.
            k: 1 or more.
            exclude: Keys that may not be answered, a row for each request.
        """
        excluded = self.of(exclude)
        scores[excluded.row_index, excluded.values] = NO_SCORE
        columns, best = best_of_dense(scores, k)
        filled = best > NO_SCORE
        keys = np.where(filled, self.keys[columns], NO_KEY) if len(self) else columns
        return Candidates(widened(keys, k, NO_KEY), widened(best, k, NO_SCORE), filled.sum(1))


def first_allowed(keys: np.ndarray, scores: np.ndarray, k: int, exclude: Ragged) -> Candidates:
    """The first `k` of each list that its request does not exclude.

    Args:
        keys: `[num_requests, width]` int64, or `[1, width]` for all alike, best first; -1 past the
            end.
        scores: float32 of the same shape, descending, equal scores by ascending key.
        k: 1 or more.
        exclude: Keys that may not be answered, a row for each request.

    >>> first_allowed(np.array([[4, 2, 9]]), np.float32([[3, 2, 1]]), 2,
    ...               Ragged.from_rows([[2], []])).keys.tolist()
    [[4, 9], [4, 2]]
    """
    num_rows = len(exclude)
    width = min(keys.shape[1], k + int(exclude.lengths.max(initial=0)))
    keys = np.broadcast_to(keys[:, :width], (num_rows, width))
    scores = np.broadcast_to(scores[:, :width], (num_rows, width))
    allowed = ~is_among(keys, exclude) & (keys >= 0)
    offsets = np.concatenate([[0], np.cumsum(np.count_nonzero(allowed, axis=1))])
    counts = np.minimum(np.diff(offsets), k)
    chosen = np.flatnonzero(allowed)[Ragged.ranges(offsets[:-1], counts).values]
    row, column = np.divmod(chosen, max(width, 1))
    inside = np.arange(k) < counts[:, None]
    found_keys = np.full((num_rows, k), NO_KEY)
    found_scores = np.full((num_rows, k), NO_SCORE)
    found_keys[inside], found_scores[inside] = keys[row, column], scores[row, column]
    return Candidates(found_keys, found_scores, counts)


def for_rows(found: Candidates, rows: np.ndarray, num_requests: int) -> Candidates:
    """Answers to some requests, `rows`, as answers to all; the others get empty rows.

    >>> found = Candidates.rank(np.array([[7]]), np.float32([[1]]), k=1)
    >>> for_rows(found, np.array([1]), 2).keys.tolist()
    [[-1], [7]]
    """
    whole = Candidates.empty(num_requests, found.keys.shape[1])
    whole.keys[rows], whole.scores[rows], whole.counts[rows] = (
        found.keys,
        found.scores,
        found.counts,
    )
    return whole
