"""What is popular: of all time, and of late."""

from typing import Self

import numpy as np

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.funnel.sources.answers import at_most, first_allowed, in_batches
from twotower.funnel.stage import Source
from twotower.retrieval.candidates import Candidates, best_of_dense

SECONDS_A_DAY = 86_400


class Popularity(Source):
    """The items with the most training rows, for everybody.

        Popularity.fit(dataset, split.train)(requests, k=500)

    Args:
        keys: `[num_known]` int64, items with a training row, most popular first.
        scores: `[num_known]` float32, descending; equal ones stand by key.
    """

    kind = "popularity"
    ARRAYS = ("keys int [num_known]", "scores float [num_known]")

    def __init__(self, keys: np.ndarray, scores: np.ndarray) -> None:
        self.keys, self.scores = keys, scores

    @classmethod
    def fit(cls, dataset: Dataset, train: np.ndarray) -> Self:
        """Counts the training rows of each item.

        Args:
            dataset: The data.
            train: `[num_train]` rows of `dataset.interactions`, such as a split's `train`.

        Raises:
            ValueError: No rows.
        """
        return cls(*_in_order(dataset.item_keys[require_rows(cls, train)], None))

    def __call__(self, requests: Requests, k: int) -> Candidates:
        k = at_most(k, len(self.keys))

        def answer(part: Requests) -> Candidates:
            return first_allowed(self.keys[None], self.scores[None], k, part.exclude)

        return in_batches(answer, requests, 2 * len(self.keys), k)


class Trending(Popularity):
    """The items with the most training rows of late: each row counts less with every day.

        score(item) = sum over its rows of 2 ** (-(newest - time) / half_life)

    `newest` is the time of the newest training row. At a later time all scores would be smaller by
    the same factor, so the order does not depend on the time of the request. It changes only when
    further rows come in and `fit` is called again. An item without a row in the last 149 half-lives
    has the score 0, since float32 has no smaller number.

        Trending.fit(dataset, split.train, half_life=30)(requests, k=500)

    Args:
        keys: `[num_known]` int64, most trending first.
        scores: `[num_known]` float32, descending; equal ones stand by key.
        half_life: Days after which a row counts half.
    """

    kind = "trending"
    SETTINGS = ("half_life",)

    def __init__(self, keys: np.ndarray, scores: np.ndarray, half_life: float) -> None:
        super().__init__(keys, scores)
        self.half_life = half_life

    @classmethod
    def fit(cls, dataset: Dataset, train: np.ndarray, half_life: float = 30.0) -> Self:
        """Counts the training rows of each item, weighted by their age.

        Args:
            dataset: The data, with times.
            train: `[num_train]` rows of `dataset.interactions`, such as a split's `train`.
            half_life: Days after which a row counts half.

        Raises:
            ValueError: No rows, data without times, or a half-life that is not positive.
        """
        if not half_life > 0:
            raise ValueError(f"half_life must be a positive number of days; got {half_life}.")
        if not dataset.has_times:
            raise ValueError(
                f"{dataset.name} has no timestamps, so nothing says what is trending. Take "
                "Popularity."
            )
        times = dataset.timestamps[require_rows(cls, train)]
        age = (times.max() - times) / (SECONDS_A_DAY * half_life)
        return cls(*_in_order(dataset.item_keys[train], np.exp2(-age)), half_life)


def require_rows(source: type, train: np.ndarray) -> np.ndarray:
    """The training rows `[num_train]`; raises ValueError if there are none."""
    if len(train) == 0:
        raise ValueError(f"{source.__name__} needs training rows; got none.")
    return train


def _in_order(keys: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The items of rows by descending sum of the rows' weights, and these sums."""
    known, sums = np.flatnonzero(np.bincount(keys)), np.bincount(keys, weights).astype(np.float32)
    columns, scores = best_of_dense(sums[known][None], len(known))
    return known[columns[0]], scores[0]
