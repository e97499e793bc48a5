"""Simulation: clicks on lists with known probabilities, from the synthetic dataset."""

import dataclasses
from typing import Self

import numpy as np

from twotower.data.planted import Synthetic
from twotower.data.requests import Requests
from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates

# Standard deviation of the logarithm of the minutes of one watch.
SPREAD = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
    """Simulated users, with the probabilities of clicks and of looking at a position.

    An item is clicked if the user looks at it and it attracts the user; both are independent. In
    `clicks`, the items of a list are independent of each other (the position-based model). In
    `cascade`, a user reads from the top and leaves after the first click.

    Attributes:
        attraction: `[num_users, num_items]`, probability of a click if the item is looked at.
        log_minutes: `[num_users, num_items]`, mean logarithm of the minutes of a watch.
        features: `[num_users, num_items, dim]`, features of user and item that a model may read.
        examination: `[num_positions]`, probability that a position is looked at.

    >>> none = np.zeros((1, 2))
    >>> simulation = Simulation(np.array([[0.5, 0.1]]), none, none[..., None], np.array([1, 0.5]))
    >>> simulation.value(np.array([0]), np.array([[[1.0, 0], [0, 1]]])).round(3).tolist()
    [0.55]
    """

    attraction: np.ndarray
    log_minutes: np.ndarray
    features: np.ndarray
    examination: np.ndarray

    @classmethod
    def of(
        cls,
        made: Synthetic,
        num_items: int,
        num_positions: int,
        rate: float = 0.15,
        spread: float = 1.0,
        decay: float = 1.0,
    ) -> Self:
        """A simulation from the true scores of a synthetic dataset, at the end of its period.

        With z the best possible score of a user and an item, in standard deviations from the mean:

            attraction   = sigmoid(logit(rate) + spread * z)
            log_minutes  = log(15) + 0.5 * fit           as the planted service draws them
            examination  = position ** -decay
            features     = taste * profile in each dimension, popularity, 1

        Args:
            made: The synthetic dataset with its true scores.
            num_items: Takes this many of the most popular items.
            num_positions: Length of the lists.
            rate: Attraction at the mean score.
            spread: How much attraction varies with the score.
            decay: How fast attention falls with the position.
        """
        users = np.arange(len(made.dataset.users))
        end = made.dataset.items["released"].max() + 1
        items = np.argsort(-made.popularity, kind="stable")[:num_items]
        scores = made.scores_of(users, np.full(len(users), end))[:, items].astype(np.float64)
        logits = np.log(rate / (1 - rate)) + spread * (scores - scores.mean()) / scores.std()
        tastes = made.tastes(users, np.full(len(users), end)).astype(np.float64)
        known = tastes[:, None] * made.profiles[items][None]  # [num_users, num_items, 16]
        popular = made.popularity[items].astype(np.float64)
        popular = np.broadcast_to((popular - popular.mean()) / popular.std(), scores.shape)
        fit = known.sum(2)
        log_minutes = np.log(15) + 0.5 * (fit - fit.mean()) / fit.std()
        both = np.stack([popular, np.ones_like(scores)], axis=2)
        features = np.concatenate([known, both], axis=2)
        positions = np.arange(1, num_positions + 1, dtype=np.float64)
        return cls(1 / (1 + np.exp(-logits)), log_minutes, features, positions**-decay)

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.attraction)

    def requests(self, users: np.ndarray, time: int = 0) -> Requests:
        """Requests of users, each at another time, so that bandits draw independently for each.

        Args:
            users: `[n]` rows of users.
            time: Time of the first in seconds; each further one comes a second later.
        """
        none = Ragged.empty(len(users))
        return Requests(
            user_id=users.astype(str).astype(object),
            history=none,
            history_time=none,
            history_rating=Ragged(np.empty(0, np.float32), none.offsets),
            exclude=none,
            time=time + np.arange(len(users)),
        )

    def candidates(
        self, users: np.ndarray, scores: np.ndarray, features: bool = False
    ) -> Candidates:
        """All items as candidates, ordered by the scores of a ranker.

        Args:
            users: `[n]` rows of users.
            scores: `[num_users, num_items]`, of a ranker.
            features: Whether to add the columns `feature_0` and so on.
        """
        keys = np.tile(np.arange(scores.shape[1]), (len(users), 1))
        columns = {}
        if features:
            columns = {
                f"feature_{n}": self.features[users, :, n] for n in range(self.features.shape[2])
            }
        return Candidates.rank(keys, scores[users].astype(np.float32), keys.shape[1], columns)

    def clicks(self, users: np.ndarray, keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Clicks on lists in the position-based model, `[n, k]` bool.

        Args:
            users: `[n]` rows of users.
            keys: `[n, k]` items; -1 past the end of a list is never clicked.
            rng: Draws them.
        """
        seen = self.examination[: keys.shape[1]]
        return rng.random(keys.shape) < seen * self.attraction[users[:, None], keys] * (keys >= 0)

    def cascade(self, users: np.ndarray, keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Clicks on lists in the cascade model, `[n, k]` bool, at most one for each list."""
        attracts = rng.random(keys.shape) < self.attraction[users[:, None], keys] * (keys >= 0)
        return attracts & (np.cumsum(attracts, axis=1) == 1)

    def minutes(self, users: np.ndarray, keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Logarithms of the minutes that users watch, `[n]`.

        Args:
            users: `[n]` rows of users.
            keys: `[n]` items.
            rng: Draws them.
        """
        return self.log_minutes[users, keys] + SPREAD * rng.standard_normal(len(users))

    def value(self, users: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        """Expected clicks of a list in the position-based model, `[n]`: the truth of a policy.

        Args:
            users: `[n]` rows of users.
            probabilities: `[n, num_items, k]`, of each item at each position.
        """
        seen = self.examination[: probabilities.shape[2]]
        return np.einsum("nik,ni,k->n", probabilities, self.attraction[users], seen)
