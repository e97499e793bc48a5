"""Upper-confidence-bound bandits: CascadeUCB1 and LinUCB.

They are deterministic: their propensities are 1, so their logs do not allow off-policy estimates.
`off_policy` needs a randomised policy.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np

from twotower.data.requests import Requests
from twotower.limits import whole_number
from twotower.reranking.exploration import Bandit, column_of, counted, feedback, of_items
from twotower.retrieval.candidates import Candidates


class CascadeUcb(Bandit):
    """CascadeUCB1 (Kveton et al., ICML 2015, Algorithm 1 with UCB1's bound).

    A user reads a list from the top, clicks the first attractive item, and leaves. So all items
    above the click were seen and not attractive, and no item below it was seen.

        bound(item) = clicks / seen + sqrt(1.5 * log(rounds) / seen)

    Items that nobody has seen come first, in their old order.

    Args:
        clicks: `[num_items]` float64, number of clicks of each item. `update` adds to it in place.
        seen: `[num_items]` float64, how often each item was seen.
        rounds: Number of lists that it was updated with.
        slots: As in `Bandit`.
        among: As in `Bandit`.
    """

    kind = "cascade_ucb"
    SETTINGS = ("rounds", "slots", "among")
    ARRAYS = ("clicks float [num_items]", "seen float [num_items]")

    def __init__(
        self,
        clicks: np.ndarray,
        seen: np.ndarray,
        rounds: int = 0,
        slots: int = 10,
        among: int = 100,
    ) -> None:
        super().__init__(slots, among)
        self.clicks, self.seen = counted(clicks, seen)
        self.rounds = whole_number(rounds, "rounds")

    @classmethod
    def empty(cls, num_items: int, slots: int = 10, among: int = 100) -> Self:
        """A bandit that has seen nothing yet."""
        return cls(np.zeros(num_items), np.zeros(num_items), 0, slots, among)

    def choose(self, requests: Requests, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """As in `Bandit`."""
        clicks, seen = of_items(self.clicks, candidates), of_items(self.seen, candidates)
        width = np.sqrt(1.5 * np.log(max(self.rounds, 1)) / np.maximum(seen, 1))
        bounds = np.where(seen > 0, clicks / np.maximum(seen, 1) + width, np.inf)
        return _largest(bounds, candidates, self.slots)

    def update(self, keys: np.ndarray, clicks: np.ndarray) -> None:
        """Updates the counts with lists that were shown.

        Args:
            keys: `[num_lists, k]` items from the top, -1 past the end of a list.
            clicks: `[num_lists, k]` bool. Only the first click of a list counts.

        Raises:
            ValueError: Arrays of different shapes, or unknown keys.
        """
        keys, clicks = np.asarray(keys), np.asarray(clicks, bool)
        if keys.ndim != 2 or keys.shape != clicks.shape:
            raise ValueError(
                f"expected keys and clicks [num_lists, k]; got {keys.shape} and {clicks.shape}."
            )
        earlier = np.cumsum(clicks, axis=1) - clicks
        observed = (keys >= 0) & (earlier == 0)
        items, clicked, ones = feedback(keys[observed], clicks[observed], 1.0, len(self.clicks))
        np.add.at(self.clicks, items, clicked)
        np.add.at(self.seen, items, ones)
        self.rounds += len(keys)


class LinUcb(Bandit):
    """LinUCB (Li et al., WWW 2010, section 3), with one vector of weights for all items.

    The expected reward is linear in a context x. It consists of columns of the candidates, such as
    scores of sources and rankers for this user and item, and of a vector of the item.
    With A = I + sum(x x') and b = sum(reward * x) over what was shown:

        bound(x) = x' A^-1 b + alpha * sqrt(x' A^-1 x)

    The paper's Algorithm 1 has A and b for each item, which would need too much feedback for
    thousands of items. Add a constant 1 to each vector for an intercept, and scale the columns
    alike.

    Args:
        vectors: `[num_items, dim]` floats, the vector of each item; `dim` may be 0. Items beyond
            its end have zeros.
        precision: `[size, size]` float64, A, with `size` = number of columns + `dim`.
        response: `[size]` float64, b.
        columns: Names of the candidates' columns that are in the context.
        alpha: Width of the bound, in standard errors.
        slots: As in `Bandit`.
        among: As in `Bandit`.

    Raises:
        ValueError: Settings out of bounds, arrays of other shapes or with NaN, or a `precision`
            that is not positive definite.
    """

    kind = "lin_ucb"
    SETTINGS = ("columns", "alpha", "slots", "among")
    ARRAYS = (
        "vectors float [num_items, dim]",
        "precision float [size, size]",
        "response float [size]",
    )

    def __init__(
        self,
        vectors: np.ndarray,
        precision: np.ndarray,
        response: np.ndarray,
        columns: Sequence[str] = (),
        alpha: float = 1.0,
        slots: int = 10,
        among: int = 100,
    ) -> None:
        super().__init__(slots, among)
        size = len(columns) + vectors.shape[1]
        if not size:
            raise ValueError("the context is empty: name columns, or give vectors.")
        if precision.shape != (size, size) or response.shape != (size,):
            raise ValueError(
                f"{len(columns)} columns and vectors of {vectors.shape[1]} need precision "
                f"[{size}, {size}] and response [{size}]; got {[*precision.shape]} and "
                f"{[*response.shape]}."
            )
        if not all(np.isfinite(array).all() for array in (vectors, precision, response)):
            raise ValueError("vectors, precision and response must be finite, without NaN.")
        if np.linalg.eigvalsh(precision)[0] <= 0:
            raise ValueError("precision must be positive definite, as I + sum(x x') is.")
        if not 0 <= alpha < np.inf:
            raise ValueError(f"alpha must be 0 or more; got {alpha}.")
        self.vectors, self.precision, self.response = vectors, precision, response
        self.columns, self.alpha = list(columns), alpha

    @classmethod
    def empty(
        cls,
        vectors: np.ndarray,
        columns: Sequence[str] = (),
        alpha: float = 1.0,
        slots: int = 10,
        among: int = 100,
    ) -> Self:
        """A bandit without any feedback, over item vectors `[num_items, dim]`."""
        size = len(columns) + vectors.shape[1]
        return cls(vectors, np.eye(size), np.zeros(size), columns, alpha, slots, among)

    def contexts(self, candidates: Candidates) -> np.ndarray:
        """The context of each candidate, `[num_requests, k, size]` float64. Log them, since
        `update` needs them as they were.

        Raises:
            ValueError: Candidates without one of the columns, or NaN in it.
        """
        keys = candidates.keys
        found = np.zeros((*keys.shape, len(self.response)))
        for number, name in enumerate(self.columns):
            found[..., number] = column_of(candidates, name)
        inside = candidates.valid & (keys < len(self.vectors))
        found[inside, len(self.columns) :] = self.vectors[keys[inside]]
        return found

    def choose(self, requests: Requests, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """As in `Bandit`."""
        contexts = self.contexts(candidates)
        inverse = np.linalg.inv(self.precision)
        mean = contexts @ (inverse @ self.response)
        variance = ((contexts @ inverse) * contexts).sum(-1)
        bounds = mean + self.alpha * np.sqrt(np.maximum(variance, 0))
        return _largest(bounds, candidates, self.slots)

    def update(
        self, contexts: np.ndarray, rewards: np.ndarray, examination: np.ndarray | float = 1.0
    ) -> None:
        """Learns from logged feedback.

        Args:
            contexts: `[n, size]`, as `contexts` made them for what was shown.
            rewards: `[n]`, such as 1 for a click.
            examination: `[n]` probability that an item was looked at, given its position. The
                expected reward is this times the linear one.

        Raises:
            ValueError: Arrays of other shapes, or with NaN.
        """
        contexts, rewards = np.asarray(contexts, np.float64), np.asarray(rewards, np.float64)
        if contexts.shape != (len(rewards), len(self.response)) or rewards.ndim != 1:
            raise ValueError(
                f"expected contexts [n, {len(self.response)}] and rewards [n]; got "
                f"{contexts.shape} and {rewards.shape}."
            )
        seen = np.broadcast_to(np.asarray(examination, np.float64), rewards.shape)
        contexts = contexts * seen[:, None]
        if not (np.isfinite(contexts).all() and np.isfinite(rewards).all()):
            raise ValueError("contexts, rewards and examination must be finite, without NaN.")
        self.precision += contexts.T @ contexts
        self.response += contexts.T @ rewards


def _largest(
    bounds: np.ndarray, candidates: Candidates, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the largest bounds of each request, equal ones in the order given, and 1 for
    each: the answer of `Bandit.choose`."""
    bounds = np.where(candidates.valid, bounds, -np.inf)
    chosen = np.argsort(-bounds, axis=1, kind="stable")[:, :slots]
    return chosen, np.ones(chosen.shape)
