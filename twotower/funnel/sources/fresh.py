"""Fresh items, which have few events or none, placed by their content."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.funnel.sources.answers import at_most
from twotower.funnel.sources.popularity import SECONDS_A_DAY
from twotower.funnel.stage import Model, Source
from twotower.retrieval.candidates import Candidates


class Fresh(Source):
    """The fresh items whose vectors score highest with the request's; all of them if k allows.

    The item tower gives an item a vector from its content even before its first event. The list of
    fresh items is made once: by release (`released`), first appearance (`appeared`), or number of
    training rows (`rare`).

        Fresh.rare(bundle, dataset, split.train, fewer_than=10)(requests, k=100)

    Args:
        model: The trained model.
        keys: `[num_fresh]` int64: the fresh items. Those that the model has no vector of are left
            out.
    """

    kind = "fresh"
    encodes = True
    ARRAYS = ("keys int [num_fresh]",)

    def __init__(self, model: Model, keys: np.ndarray) -> None:
        self.keys = np.intersect1d(keys, model.keys)
        self._model, self._retriever = model, model.retriever("exact")

    @classmethod
    def rare(cls, model: Model, dataset: Dataset, train: np.ndarray, fewer_than: int) -> "Fresh":
        """A source of the items with fewer training rows than `fewer_than`.

        Args:
            model: The trained model.
            dataset: The data.
            train: `[num_train]` rows of `dataset.interactions`, such as a split's `train`.
            fewer_than: 1 takes only the items without a row.
        """
        counts = np.bincount(dataset.item_keys[train], minlength=len(dataset.items))
        return cls(model, np.flatnonzero(counts < fewer_than))

    @classmethod
    def appeared(cls, model: Model, dataset: Dataset, train: np.ndarray, days: float) -> "Fresh":
        """A source of the items whose first training row is at most `days` older than the newest
        row, and of items without a row.

        Raises:
            ValueError: No rows, or data without times.
        """
        newest = _newest(dataset, train)
        first = np.full(len(dataset.items), newest)
        np.minimum.at(first, dataset.item_keys[train], dataset.timestamps[train])
        return cls(model, np.flatnonzero(first >= newest - days * SECONDS_A_DAY))

    @classmethod
    def released(
        cls,
        model: Model,
        dataset: Dataset,
        train: np.ndarray,
        days: float,
        column: str = "released",
    ) -> "Fresh":
        """A source of the items released at most `days` before the newest training row, or after
        it.

        Args:
            model: The trained model.
            dataset: The data.
            train: `[num_train]` rows of `dataset.interactions`, such as a split's `train`.
            days: How long an item is fresh.
            column: Of the catalogue, times in seconds. Items without a time are not fresh.

        Raises:
            ValueError: No rows, data without times, or no such column.
        """
        if column not in dataset.items:
            raise ValueError(
                f"the catalogue has no column {column!r}; it has {list(dataset.items.columns)}. "
                "Take Fresh.appeared or Fresh.rare."
            )
        since = _newest(dataset, train) - days * SECONDS_A_DAY
        return cls(model, np.flatnonzero(dataset.items[column].to_numpy(float) >= since))

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], model: Model
    ) -> "Fresh":
        return cls(model, **settings, **arrays)

    def __call__(self, requests: Requests, k: int) -> Candidates:
        k = at_most(k, len(self.keys))
        if not len(requests) or not len(self.keys):
            return Candidates.empty(len(requests), k)
        vectors = self._model.encode(requests)
        return self._retriever.search(vectors, k, exclude=requests.exclude, allow=self.keys)


def _newest(dataset: Dataset, train: np.ndarray) -> int:
    """Time of the newest training row."""
    if len(train) == 0 or not dataset.has_times:
        raise ValueError(
            f"what is new needs training rows with times; got {len(train)} rows of {dataset.name}. "
            "Take Fresh.rare, which counts rows."
        )
    return int(dataset.timestamps[train].max())
