"""Exploration: the base class of bandits, which fill the first positions of lists.

A bandit writes the column `propensity`: the probability, given the candidates, that this item is at
this position. `off_policy` needs it. So no stage after a bandit may move or remove items: put
filters and rules before it.

The draws for a request depend only on the seed and the request (user, time, history, and the
`request_id` of its context, if any), not on other requests of its batch. So the same request gets
the same list again, unless its time or `request_id` differs.
"""

import abc
import hashlib
from collections.abc import Iterator

import numpy as np

from twotower.data.requests import Requests
from twotower.funnel.reordering import reordered
from twotower.funnel.stage import Stage
from twotower.limits import whole_number
from twotower.ragged import integers
from twotower.retrieval.candidates import Candidates


class Bandit(Stage):
    """Base class: fills the first positions (slots) of each list from its first candidates.

    Args:
        slots: Number of positions to fill. The other candidates follow in their old order.
        among: Only this many of a request's first candidates may come into the slots.
    """

    context = ("request_id",)

    def __init__(self, slots: int, among: int) -> None:
        self.slots, self.among = whole_number(slots, "slots", 1), whole_number(among, "among", 1)
        if among < slots:
            raise ValueError(f"among must be slots or more; got {among} for {slots} slots.")

    @abc.abstractmethod
    def choose(self, requests: Requests, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Chooses the candidates of the slots.

        Args:
            requests: The requests.
            candidates: The candidates to choose from, `k` columns. A request may have none.

        Returns:
            The position, among the candidates, of the item in each slot, `[num_requests, min(slots,
            k)]`, and the propensity of each. Values beyond a request's candidates are ignored.
        """

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        if len(requests) != len(candidates):
            raise ValueError(
                f"got candidates of {len(candidates)} requests for {len(requests)} requests."
            )
        if "propensity" in candidates.columns:
            raise ValueError(
                "the candidates have propensities already, of a bandit whose list this one would "
                "change. A funnel has one bandit."
            )
        valid, (num, width) = candidates.valid, candidates.keys.shape
        # NaN after the slots, since the probability of what the draws leave there is not known.
        propensity = np.where(valid, np.nan, 0.0)
        order = np.tile(np.arange(width), (num, 1))
        if valid.any():
            chosen, known = self.choose(requests, candidates.head(self.among))
            filled = valid[:, : chosen.shape[1]]
            rank = order + width  # after all slots, in the given order
            row, slot = np.nonzero(filled)
            rank[row, chosen[filled]] = slot
            order = np.argsort(rank, axis=1, kind="stable")
            propensity[:, : known.shape[1]] = np.where(filled, known, 0.0)
        found = reordered(candidates, order)
        return Candidates(
            found.keys, found.scores, found.counts, {**found.columns, "propensity": propensity}
        )


def generators(requests: Requests, seed: int) -> Iterator[np.random.Generator]:
    """A random generator for each request, independent of the other requests of the batch."""
    request_id = requests.texts("request_id")
    for row in range(len(requests)):
        text = f"{seed}:{requests.user_id[row]}:{requests.time[row]}:{request_id[row]}:"
        content = text.encode() + requests.history[row].astype("<i8").tobytes()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        yield np.random.default_rng(int.from_bytes(digest, "big"))


def column_of(candidates: Candidates, name: str) -> np.ndarray:
    """A column of the candidates, `[num_requests, k]` float64, 0 past the end.

    Raises:
        ValueError: No such column, or values that are not finite.
    """
    if name not in candidates.columns:
        raise ValueError(
            f"the candidates have no column {name!r}; they have {list(candidates.columns)}. "
            "A stage or source before the bandit must write it."
        )
    values = np.where(candidates.valid, candidates.columns[name], 0).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"the column {name!r} must be finite; it holds NaN or infinity.")
    return values


def of_items(values: np.ndarray, candidates: Candidates) -> np.ndarray:
    """The value of each candidate, `[num_requests, k]`. It is 0 for newer items, beyond the end of
    `values`, and past the end of a list."""
    inside = candidates.valid & (candidates.keys < len(values))
    if not len(values):
        return np.zeros(inside.shape)
    return np.where(inside, values[np.where(inside, candidates.keys, 0)], 0.0)


def counted(clicks: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a bandit knows of each item, two float64 arrays `[num_items]`.

    Raises:
        ValueError: Arrays of different shapes, or numbers that are negative or not finite.
    """
    clicks, seen = np.asarray(clicks, np.float64), np.asarray(seen, np.float64)
    if clicks.ndim != 1 or clicks.shape != seen.shape:
        raise ValueError(
            f"expected clicks and seen [num_items]; got {[*clicks.shape]} and {[*seen.shape]}."
        )
    for name, values in (("clicks", clicks), ("seen", seen)):
        if not ((values >= 0) & (values < np.inf)).all():
            raise ValueError(f"{name} must be finite and 0 or more, without NaN.")
    return clicks, seen


def feedback(
    keys: np.ndarray, rewards: np.ndarray, examination: np.ndarray | float, num_items: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logged feedback as three arrays `[n]`.

    Raises:
        ValueError: As `update` of a bandit says.
    """
    keys, rewards = integers(keys, "keys"), np.asarray(rewards, np.float64)
    seen = np.broadcast_to(np.asarray(examination, np.float64), rewards.shape)
    if keys.ndim != 1 or keys.shape != rewards.shape:
        raise ValueError(f"expected keys and rewards [n]; got {keys.shape} and {rewards.shape}.")
    if keys.min(initial=0) < 0 or keys.max(initial=-1) >= num_items:
        raise ValueError(
            f"keys must be those of the {num_items} items that the bandit counts; got "
            f"{keys.min()} to {keys.max()}. Make its arrays longer for new items."
        )
    for name, values in (("rewards", rewards), ("examination", seen)):
        if not ((values >= 0) & (values <= 1)).all():  # NaN as well
            raise ValueError(f"{name} must lie within 0 and 1, without NaN.")
    return keys, rewards, seen
