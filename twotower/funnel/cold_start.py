"""Cold start: which items to ask a new user about, and slots that show new items."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import scipy.sparse as sparse

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.funnel.reordering import reordered
from twotower.funnel.sources.answers import Columns
from twotower.funnel.sources.popularity import Popularity
from twotower.funnel.stage import Stage
from twotower.limits import whole_number
from twotower.ragged import Ragged
from twotower.retrieval.candidates import NO_SCORE, Candidates

# Requests, or cases with their right answers.
Asked = TypeVar("Asked", bound=Requests)


def most_popular(dataset: Dataset, train: np.ndarray, size: int = 20) -> np.ndarray:
    """The onboarding list to beat: the items with the most training rows, `[size]` int64."""
    return Popularity.fit(dataset, train).keys[: whole_number(size, "size", 1)]


def most_telling(
    dataset: Dataset,
    train: np.ndarray,
    size: int = 20,
    pool: int = 300,
    regularization: float = 100.0,
) -> np.ndarray:
    """Items to ask a new user about: those whose answers tell most about the other items.

    Chooses greedily, each time the item that reduces the error of predicting all others the most,
    given the answers to those chosen before: the criterion of Golbandi, Koren and Lempel (CIKM
    2010), with a linear predictor. Rashid et al. (IUI 2002) compare simpler ones, such as
    popularity times entropy. With C the covariance of liking items i and j over users:

        gain(i) = sum over j of C_ij ** 2 / (C_ii + regularization)
        C <- C - outer(C_i, C_i) / (C_ii + regularization)    for the item i that was chosen

    A popular item has a large gain, since many users know it. An item similar to a chosen one has a
    small gain. `picked` makes the picks the history of a request.

    Args:
        dataset: The data.
        train: Rows of `dataset.interactions`, such as a split's `train`.
        size: Length of the list.
        pool: Only this many of the most popular items are considered, both to ask about and to
            predict.
        regularization: Positive; lowers the gain of items that few users have.

    Returns:
        `[size]` int64 keys in the order in which they were chosen; fewer if the pool is smaller.

    Raises:
        ValueError: No rows, or a regularization that is not positive.
    """
    if not regularization > 0:
        raise ValueError(f"regularization must be positive; got {regularization}.")
    keys = most_popular(dataset, train, pool)
    column = np.full(len(dataset.items), -1)
    column[keys] = np.arange(len(keys))
    columns = column[dataset.item_keys[train]]
    users, inside = dataset.user_rows[train], columns >= 0
    likes = sparse.csr_array(
        (np.ones(inside.sum()), (users[inside], columns[inside])), (len(dataset.users), len(keys))
    )
    likes.data[:] = 1  # an item that was liked twice counts once
    num_users = len(np.unique(users))
    counts = likes.sum(0)
    covariance = (likes.T @ likes).toarray() - np.outer(counts, counts) / num_users
    chosen: list[int] = []
    for _ in range(min(whole_number(size, "size", 1), len(keys))):
        gains = np.square(covariance).sum(1) / (np.diag(covariance) + regularization)
        gains[chosen] = -np.inf
        best = int(gains.argmax())
        chosen.append(best)
        row = covariance[best].copy()
        covariance -= np.outer(row, row) / (row[best] + regularization)
    return keys[chosen]


def picked(requests: Asked, shown: np.ndarray, most: int = 5) -> Asked:
    """The requests that these users would make as new users after onboarding.

    A user picks from the list the items of the old history, in the order of the list and at most
    `most`. The picks are the history of the new request, without times and ratings, and its user is
    unknown. All else stays: the excluded items, the request time, the context, and the targets of
    cases.

    Args:
        requests: Requests of known users.
        shown: `[size]` int64 keys, the list.
        most: Number of picks, 1 or more.
    """
    of_history = Columns(np.sort(shown)).of(requests.history)
    liked = np.zeros((len(requests), len(shown)), bool)
    # Columns are in order of the keys; those of `liked` in the order of the list.
    liked[of_history.row_index, np.argsort(shown)[of_history.values]] = True
    liked &= np.cumsum(liked, axis=1) <= whole_number(most, "most", 1)
    row, column = np.nonzero(liked)
    picks = Ragged.from_lengths(shown[column], liked.sum(1))
    return dataclasses.replace(
        requests,
        user_id=np.full(len(requests), "", object),
        history=picks,
        history_time=Ragged(np.full(len(row), -1), picks.offsets),
        history_rating=Ragged(np.full(len(row), np.nan, np.float32), picks.offsets),
    )


class ExplorationSlots(Stage):
    """Shows items at fixed slots until each has been shown often enough.

    For each slot, in order, one item that still needs to be shown moves up to the slot, and the
    items between shift back by one. Of several such items, the one with the best score in `source`
    moves. Only items that `source` found are moved. An item that is already before the slot stays
    there. If no such item is left after a slot, nothing moves.

    Scores stay at their positions, see `reordered`.

        slots = ExplorationSlots(np.zeros(len(catalogue), np.int64), slots=(10, 15), until=100)
        slots.counts[shown_keys] += 1  # after each answer, by the caller

    Args:
        counts: `[num_items]` int64, how often each item has been shown. The caller updates it in
            place. An item beyond its end has not been shown.
        slots: Positions from 1, ascending.
        until: Number of times that each item is to be shown.
        source: Name of the source of fresh items in the funnel.

    Raises:
        ValueError: Slots that do not ascend from 1 on, or `until` below 0.
    """

    kind = "exploration_slots"
    SETTINGS = ("slots", "until", "source")
    ARRAYS = ("counts int [num_items]",)

    def __init__(
        self,
        counts: np.ndarray,
        slots: Sequence[int] = (10, 15),
        until: int = 100,
        source: str = "fresh",
    ) -> None:
        self.slots = check_slots(slots)
        self.counts, self.until, self.source = counts, whole_number(until, "until"), source

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        ranks = candidates.columns.get(f"{self.source}_rank")
        if ranks is None:
            raise ValueError(
                f"the candidates come from no source {self.source!r}; they have the columns "
                f"{list(candidates.columns)}. Name the funnel's source of fresh items."
            )
        keys, width = candidates.keys, candidates.keys.shape[1]
        shown_enough = np.flatnonzero(self.counts >= self.until)
        needs = candidates.valid & (ranks > 0) & ~np.isin(keys, shown_enough)
        scores = np.where(needs, candidates.columns[f"{self.source}_score"], NO_SCORE)
        column = np.arange(width)
        order = np.broadcast_to(column, keys.shape)
        for slot in self.slots:
            if slot > width:
                break
            waiting = np.take_along_axis(scores, order, axis=1)
            waiting[:, : slot - 1] = NO_SCORE
            best = waiting.argmax(1)[:, None]
            moves = np.take_along_axis(waiting, best, axis=1) > NO_SCORE
            # What stands from the slot to the item moves back by one, and the item to the slot.
            origin = np.where((column >= slot) & (column <= best), column - 1, column)
            origin = np.where(column == slot - 1, best, origin)
            order = np.take_along_axis(order, np.where(moves, origin, column), axis=1)
        return reordered(candidates, order)


def check_slots(slots: Sequence[int]) -> list[int]:
    """The slots as integers.

    Raises:
        ValueError: Slots that do not ascend from 1 on.
    """
    found = [whole_number(slot, "slots", 1) for slot in slots]
    if found != sorted(set(found)):
        raise ValueError(f"slots must ascend, none twice; got {found}.")
    return found
