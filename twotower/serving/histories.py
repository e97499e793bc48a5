"""Histories: what the data knows of users, for requests that name a user and no history."""

import numpy as np

from twotower.data.dataset import Dataset
from twotower.ragged import Ragged


class Histories:
    """The positives of each user of a dataset, oldest first.

        histories = Histories(load_dataset("movielens/1m", "ml-1m"))
        ids, times, ratings = histories.of("42")

    Args:
        dataset: The data, which the bundle need not have been trained on.
    """

    def __init__(self, dataset: Dataset) -> None:
        rows = np.flatnonzero(dataset.positive)
        rows = rows[np.argsort(dataset.timestamps[rows], kind="stable")]
        self._rows = Ragged.group(rows, dataset.user_rows[rows], len(dataset.users))
        self._row_of = {user: row for row, user in enumerate(dataset.users["user_id"])}
        table = dataset.interactions
        self._ids, self._times = table["item_id"].to_numpy(object), dataset.timestamps
        self._ratings = table["rating"].to_numpy(np.float32) if "rating" in table else None

    def of(self, user_id: str) -> tuple[list[str], list[int], list[float]]:
        """Item ids, times and ratings (NaN for none) of a user; nothing of an unknown one."""
        row = self._row_of.get(user_id)
        if row is None:
            return [], [], []
        rows = self._rows[row]
        ratings = np.full(len(rows), np.nan) if self._ratings is None else self._ratings[rows]
        return self._ids[rows].tolist(), self._times[rows].tolist(), ratings.tolist()
