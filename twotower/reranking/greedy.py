"""Greedy re-ranking: the first positions of a list are filled one by one. Numpy only."""

import abc

import numpy as np

from twotower.data.requests import Requests
from twotower.funnel.reordering import reordered
from twotower.funnel.stage import Stage
from twotower.limits import whole_number
from twotower.retrieval.candidates import Candidates

# Values of a table [requests, candidates, features] that is filled at once.
CELLS = 2**22
# Candidates of a list among which the first positions are filled. A funnel's fallback answers with
# the whole catalogue.
REACH = 2_000
# Less than any gain.
BEHIND = np.float32(-1e30)


class Gains(abc.ABC):
    """The gain of each candidate, given the items chosen so far for each request."""

    @abc.abstractmethod
    def values(self) -> np.ndarray:
        """`[num_requests, k]` finite, larger is better."""

    @abc.abstractmethod
    def add(self, column: np.ndarray) -> None:
        """Appends the candidate `column[i]` to the list of request `i`."""


class Greedy(Stage):
    """Base class: fills the first positions of a list one by one, each with the item of largest
    gain.

    The lists of all requests of a batch are filled in parallel. Of equal gains, the item that was
    first is taken. Items that are not chosen follow in their old order. Only the first 2,000 items
    of a list can be chosen. Scores stay at their positions, and the column `relevance` has the
    scores that the items had before (`twotower.funnel.reordering`).

    Args:
        length: Number of positions to re-rank, 1 or more.
    """

    def __init__(self, length: int) -> None:
        self.length = whole_number(length, "length", 1)

    @abc.abstractmethod
    def gains(self, requests: Requests, candidates: Candidates) -> Gains:
        """The gains before any item is chosen."""

    @property
    @abc.abstractmethod
    def num_features(self) -> int:
        """Number of values that `gains` stores for each candidate."""

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        # Items after the first `REACH` keep their positions.
        first = candidates.head(REACH) if candidates.keys.shape[1] > REACH else candidates
        order = np.broadcast_to(np.arange(candidates.keys.shape[1]), candidates.keys.shape).copy()
        width = first.keys.shape[1]
        step = max(1, CELLS // max(1, width * self.num_features))
        for start in range(0, len(candidates), step):
            rows = np.arange(start, min(start + step, len(candidates)))
            order[rows, :width] = self._order(requests.take(rows), first.take(rows))
        return reordered(candidates, order)

    def _order(self, requests: Requests, candidates: Candidates) -> np.ndarray:
        """`[num_requests, k]` the present column of each item of the new lists."""
        num_rows, width = candidates.keys.shape
        length = min(self.length, int(candidates.counts.max(initial=0)))
        gains, rows = self.gains(requests, candidates), np.arange(num_rows)
        valid = candidates.valid
        # Entries past the end of a list come after its last item.
        closed = np.where(valid, np.float32(0), BEHIND)
        column = np.arange(width)
        place = np.broadcast_to(column + length, valid.shape).copy()
        for position in range(length):
            best = (gains.values() + closed).argmax(1)
            place[rows, best] = position
            closed[rows, best] = -np.inf
            gains.add(best)
        return np.where(valid, place, column + length).argsort(axis=1, kind="stable")


def relevance(candidates: Candidates) -> np.ndarray:
    """The relevance of each item by its rank, with NDCG's discount: one scale for all rankers.

        relevance = 1 / log2(1 + rank)

    It depends only on the order of the scores, so they may be logits, probabilities or sums of
    reciprocal ranks. Items with equal scores have the rank of the first of them.

    Returns:
        `[num_requests, k]` float32; 0 past the end of a list.

    Raises:
        ValueError: Scores that are not finite.

    >>> found = Candidates.rank(np.array([[5, 3, 8]]), np.float32([[4, 2, 2]]), k=4)
    >>> relevance(found).round(3).astype(str).tolist()
    [['1.0', '0.631', '0.631', '0.0']]
    """
    scores, valid = candidates.scores, candidates.valid
    if not np.isfinite(scores[valid]).all():
        raise ValueError("scores of candidates must be finite, without NaN, to be re-ranked.")
    follows = np.zeros(scores.shape, bool)
    follows[:, 1:] = scores[:, 1:] == scores[:, :-1]
    column = np.arange(scores.shape[1])
    first = np.maximum.accumulate(np.where(follows, 0, column), axis=1)
    discounts = (1 / np.log2(2 + column)).astype(np.float32)
    return np.where(valid, discounts[first], np.float32(0))


def check_weight(weight: float) -> float:
    """The weight, from 0 to 1.

    Raises:
        ValueError: One that is not, such as NaN.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must lie within 0 and 1; got {weight}.")
    return float(weight)


def checked_tags(tags: np.ndarray) -> np.ndarray:
    """Tags `[num_items, num_tags]` as uint8.

    Raises:
        ValueError: Another shape, or values other than 0 and 1.
    """
    found = np.asarray(tags)
    if found.ndim != 2 or not found.size or not np.isin(found, (0, 1)).all():
        raise ValueError(
            f"tags must be [num_items, num_tags], 0 or 1, with an item and a tag at least; got "
            f"{found.dtype} {found.shape}. `genre_table(catalogue)` makes them."
        )
    return found.astype(np.uint8)
