"""Randomised bandits: epsilon-greedy and Thompson sampling. Their logs allow off-policy estimates.

Both count the clicks of each item over all users. They are personal only through the prior: a
ranker's column with the probability of a click.
"""

import functools
from typing import Any, ClassVar, Self

import numpy as np

from twotower.data.requests import Requests
from twotower.limits import whole_number
from twotower.reranking.exploration import (
    Bandit,
    column_of,
    counted,
    feedback,
    generators,
    of_items,
)
from twotower.retrieval.candidates import Candidates

# Prior probabilities of 0 and 1, such as isotonic calibration gives, would never be left.
LEAST = 1e-6


class _Counted(Bandit):
    """A bandit that knows of each item how often it was seen and clicked, and a prior.

    Args:
        clicks: `[num_items]` float64, sum of the rewards of each item. `update` adds to it in
            place; further items have none.
        seen: `[num_items]` float64, how often each item was seen.
        seed: Of all draws.
        prior: Expected reward of an item before anything is known, within 0 and 1.
        prior_column: Name of a column of the candidates with the prior of each candidate, such as
            a ranker's calibrated probability. "" for `prior`.
        strength: How many times seen the prior counts as.
        slots: As in `Bandit`.
        among: As in `Bandit`.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = (
        "seed",
        "prior",
        "prior_column",
        "strength",
        "slots",
        "among",
    )
    ARRAYS = ("clicks float [num_items]", "seen float [num_items]")

    def __init__(
        self,
        clicks: np.ndarray,
        seen: np.ndarray,
        seed: int = 0,
        prior: float = 0.1,
        prior_column: str = "",
        strength: float = 10.0,
        slots: int = 10,
        among: int = 100,
    ) -> None:
        super().__init__(slots, among)
        if not (0 <= prior <= 1 and 0 < strength < np.inf):
            raise ValueError(
                f"prior must lie within 0 and 1 and strength above 0; got {prior}, {strength}."
            )
        self.clicks, self.seen = counted(clicks, seen)
        self.seed = seed
        self.prior, self.prior_column, self.strength = prior, prior_column, strength

    @classmethod
    def empty(cls, num_items: int, **settings: Any) -> Self:
        """A bandit without any feedback."""
        return cls(np.zeros(num_items), np.zeros(num_items), **settings)

    def update(
        self, keys: np.ndarray, rewards: np.ndarray, examination: np.ndarray | float = 1.0
    ) -> None:
        """Updates the counts with logged feedback.

        Args:
            keys: `[n]` items that were shown.
            rewards: `[n]` within 0 and 1, such as 1 for a click.
            examination: `[n]` probability that an item was looked at, given its position. An item
                at position 10 without a click says less than one at position 1.

        Raises:
            ValueError: Unknown keys, or values out of bounds.
        """
        keys, rewards, seen = feedback(keys, rewards, examination, len(self.clicks))
        np.add.at(self.clicks, keys, rewards)
        np.add.at(self.seen, keys, seen)

    def posterior(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Parameters of each candidate's Beta distribution, two arrays `[num_requests, k]`: the
        numbers of times with and without a click, including those of the prior.

        Raises:
            ValueError: No column `prior_column`, or values outside [0, 1].
        """
        prior = np.full(candidates.keys.shape, self.prior)
        if self.prior_column:
            prior = column_of(candidates, self.prior_column)
            if not ((prior >= 0) & (prior <= 1)).all():
                raise ValueError(f"{self.prior_column} must be probabilities, within 0 and 1.")
        prior = np.clip(prior, LEAST, 1 - LEAST)
        clicks = of_items(self.clicks, candidates)
        # Clicks can be more than times seen where these are counted by examination.
        others = np.maximum(of_items(self.seen, candidates) - clicks, 0)
        return self.strength * prior + clicks, self.strength * (1 - prior) + others


class EpsilonGreedy(_Counted):
    """Fills each slot with the best remaining item, or with probability `epsilon` with a random
    one.

    The best item has the largest expected reward (from prior and clicks), and of equal ones the
    first in the list. So without feedback and `prior_column`, the order stays as it was. A random
    item is drawn uniformly from all items that are in no slot yet, the best one included.

    The propensity is exact, see `slot_probabilities`. An `epsilon` of 0 is the greedy policy, 1 is
    a uniformly random one.

        stage = EpsilonGreedy.empty(len(catalogue), epsilon=0.1)
        shown = stage(requests, candidates)
        stage.update(shown.keys[:, 0], clicked)
    """

    kind = "epsilon_greedy"
    SETTINGS = ("epsilon", *_Counted.SETTINGS)

    def __init__(
        self, clicks: np.ndarray, seen: np.ndarray, epsilon: float = 0.1, **others: Any
    ) -> None:
        super().__init__(clicks, seen, **others)
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must lie within 0 and 1; got {epsilon}.")
        self.epsilon = epsilon

    def greedy_order(self, candidates: Candidates) -> np.ndarray:
        """Positions of the candidates, largest expected reward first, `[num_requests, k]`."""
        clicks, others = self.posterior(candidates)
        value = np.where(candidates.valid, clicks / (clicks + others), -np.inf)
        return np.argsort(-value, axis=1, kind="stable")

    def choose(self, requests: Requests, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """As in `Bandit`."""
        best_first, counts = self.greedy_order(candidates), candidates.counts
        num, width = candidates.keys.shape
        slots = min(self.slots, width)
        drawn = np.stack([rng.random((2, self.slots)) for rng in generators(requests, self.seed)])
        # From here on an item is its rank in the greedy order, so that the best is the first left.
        left, row = np.arange(width) < counts[:, None], np.arange(num)
        ranks = np.zeros((num, slots), np.int64)
        for slot in range(slots):
            nth = np.floor(drawn[:, 1, slot] * left.sum(1))
            nth = np.where(drawn[:, 0, slot] < self.epsilon, nth, 0)
            ranks[:, slot] = (np.cumsum(left, axis=1) > nth[:, None]).argmax(1)
            left[row, ranks[:, slot]] = False
        propensity = np.empty((num, slots))
        for count in np.unique(counts):
            rows = np.flatnonzero(counts == count)
            table = slot_probabilities(int(count), self.slots, self.epsilon)
            inside = min(slots, count)
            propensity[rows, :inside] = table[ranks[rows, :inside], np.arange(inside)]
        return np.take_along_axis(best_first, ranks, axis=1), propensity


@functools.lru_cache(maxsize=1024)
def slot_probabilities(num_items: int, slots: int, epsilon: float) -> np.ndarray:
    """Probability that epsilon-greedy puts the item of each greedy rank into each slot.

    It is the marginal probability over all choices for the slots before. Suppose that, before slot
    j, the item of rank r (from 0) is left and a of the r better items are taken. Then n - j items
    are left, and

        P(it is taken)          = (1 - epsilon) * [a = r] + epsilon / (n - j)
        P(a better one is)      = (1 - epsilon) * [a < r] + epsilon * (r - a) / (n - j)
        P(a worse one is)       = epsilon * (n - 1 - r - (j - a)) / (n - j)

    Returns:
        `[num_items, min(num_items, slots)]`; every column sums to 1.

    >>> slot_probabilities(2, 2, 0.5).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    width = min(num_items, slots)
    rank, better = np.arange(num_items)[:, None], np.arange(width + 1)
    left = np.zeros((num_items, width + 1))  # P(still left, `better` better ones taken)
    left[:, 0] = 1
    found = np.zeros((num_items, width))
    for slot in range(width):
        each = epsilon / (num_items - slot)
        take = (1 - epsilon) * (better == rank) + each
        take_better = (1 - epsilon) * (better < rank) + each * (rank - better)
        take_worse = each * (num_items - 1 - rank - (slot - better))
        found[:, slot] = (left * take).sum(1)
        after = left * take_worse
        after[:, 1:] += (left * take_better)[:, :-1]
        left = after
    found.flags.writeable = False  # it is cached
    return found


class Thompson(_Counted):
    """Thompson sampling: orders items by a draw from the Beta distribution of each item's reward.

    Thompson (Biometrika 1933); Chapelle and Li (NIPS 2011). The reward of an item has the
    distribution Beta(strength * prior + clicks, strength * (1 - prior) + times without a click).

    The propensity p has no closed form. It is estimated by the share of `draws` + 1 draws,
    including the one that is shown, in which the item is at the position. This biases importance
    weights: their expectation is 1 - (1 - p) ** (draws + 1) in place of 1. With p = 0.05 and a
    hundred draws, estimates miss 0.6% of an item's reward. With `draws` 0 the propensity is NaN,
    which `off_policy` refuses.

    Args:
        draws: Number of further draws for each list, used only for the propensity.
    """

    kind = "thompson"
    SETTINGS = ("draws", *_Counted.SETTINGS)

    def __init__(self, clicks: np.ndarray, seen: np.ndarray, draws: int = 0, **others: Any) -> None:
        super().__init__(clicks, seen, **others)
        self.draws = whole_number(draws, "draws")

    def choose(self, requests: Requests, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """As in `Bandit`."""
        clicks, others = self.posterior(candidates)
        slots = min(self.slots, candidates.keys.shape[1])
        chosen = np.zeros((len(requests), slots), np.int64)
        propensity = np.full(chosen.shape, np.nan)
        for row, rng in enumerate(generators(requests, self.seed)):
            count = candidates.counts[row]
            shape = (self.draws + 1, count)
            drawn = rng.beta(clicks[row, :count], others[row, :count], shape)
            lists = np.argsort(-drawn, axis=1)[:, :slots]  # [draws + 1, min(count, slots)]
            chosen[row, : lists.shape[1]] = lists[0]
            if self.draws:
                propensity[row, : lists.shape[1]] = (lists == lists[0]).mean(0)
        return chosen, propensity
