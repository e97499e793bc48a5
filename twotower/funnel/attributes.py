"""Attribute: an attribute of requests, such as an age or a region, for sources and filters."""

from collections.abc import Callable

import numpy as np

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests


class Attribute:
    """The value of an attribute for each request: from its context, else from its user, else "".

    Args:
        name: Column of `Requests.context` and of `Dataset.users`; or `hour`, the hour of the
            request's day in UTC.
        user_id: `[num_users]` strings, users whose value is known; none by default.
        values: `[num_users]` strings.

    >>> from twotower.data.catalogue import Catalogue
    >>> import pandas as pd
    >>> catalogue = Catalogue(pd.DataFrame({"item_id": ["x"]}))
    >>> requests = Requests.of(catalogue, [[], []], user_id=["1", ""], context={"age": ["", "25"]})
    >>> Attribute("age", np.array(["1"]), np.array(["18"]))(requests).tolist()
    ['18', '25']
    """

    def __init__(
        self, name: str, user_id: np.ndarray | None = None, values: np.ndarray | None = None
    ) -> None:
        self.name = name
        self.user_id = np.array([], str) if user_id is None else user_id
        self.values = np.array([], str) if values is None else values
        self._value_of = dict(zip(self.user_id.tolist(), self.values.tolist()))

    @classmethod
    def of(cls, dataset: Dataset, name: str, short: Callable[[str], str] = str) -> "Attribute":
        """The attribute with the values of the dataset's users.

        Args:
            dataset: The data; its users may have the column.
            name: The column.
            short: Changes each user's value, such as to the first digit of a zip code.
        """
        if name not in dataset.users:
            return cls(name)
        values = [short(value) for value in dataset.users[name].astype(str)]
        return cls(name, dataset.users["user_id"].to_numpy(str), np.array(values, str))

    def __call__(self, requests: Requests) -> np.ndarray:
        """`[num_requests]` strings, as objects."""
        if self.name == "hour":
            hours = requests.time // 3600 % 24
            return np.where(requests.time < 0, "", hours.astype(str)).astype(object)
        of_users = [self._value_of.get(user, "") for user in requests.user_id]
        given = requests.texts(self.name)
        return np.where(given != "", given, np.array(of_users, object))
