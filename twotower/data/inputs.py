"""Inputs of the towers, made from the data.

`QueryInputs` turns requests into inputs of the query tower. `ItemInputs` turns keys of items into
inputs of the item tower, with age and popularity as of a given time.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from twotower.data.config import TIME_DEPENDENT
from twotower.data.dataset import Dataset
from twotower.data.requests import CONTEXT, Requests
from twotower.ragged import Ragged

DAY = 86_400.0  # seconds
# Inputs that come from a request itself; all others are columns of its user.
COMPUTED = ("history", "history_time", "history_rating", "time")
REQUEST_INPUTS = (*COMPUTED, *CONTEXT)


def require_features(dataset: Dataset, query: Iterable[str], item: Iterable[str]) -> None:
    """Raises ValueError if a feature of one of the towers is none that the data have; the message
    names those that there are."""
    context = [name for name in CONTEXT if name in dataset.interactions]
    for tower, names, known, hint in (
        ("query", query, {"history", "time", *context, *dataset.users}, ""),
        (
            "item",
            item,
            {*TIME_DEPENDENT, *dataset.items},
            " recipe_for(dataset, split) chooses from the columns that a dataset has.",
        ),
    ):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"unknown {tower} features {unknown}; this dataset has {sorted(known)}.{hint}"
            )


class QueryInputs:
    """Makes the query tower's inputs from requests: raw values or, after `encoded`, integers.

    Args:
        dataset: Source of the users' columns and the items' ids.
        names: Inputs of the query tower.

    Attributes:
        users: Name of an input -> its value for each user, `[num_users + 1]`; the last one is for
            users who are not in the dataset.
        items: `[num_items + 1]`, id of each item by key: strings, or integers after `encoded`; the
            last one is for padding.
        pad: Value of `items` for padding.

    Raises:
        ValueError: An input that is neither a column of users nor a part of a history or a request;
            or one that is both, unless users and interactions agree on its values.

    Example:
        inputs = QueryInputs(dataset, ["history", "history_time"])
        inputs(split.cases)["history"]  # [num_cases, longest] ids, padded with ""
    """

    def __init__(self, dataset: Dataset, names: Sequence[str]) -> None:
        self.names = list(names)
        known = {*REQUEST_INPUTS, *dataset.users}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"no such query inputs: {unknown}; there are {sorted(known)}.")
        shared = set(names).intersection(CONTEXT, dataset.users, dataset.interactions)
        others = [*COMPUTED, *(name for name in shared if _differs(dataset, name))]
        _refuse_twins("users", dataset.users, names, others)
        self._lookup = {user_id: row for row, user_id in enumerate(dataset.users["user_id"])}
        # The last row is for users that the dataset does not have, whose columns are all missing.
        self.users = {
            name: np.append(dataset.users[name].to_numpy(object), "")
            for name in names
            if name in dataset.users
        }
        self.items = np.append(dataset.items["item_id"].to_numpy(object), "")
        self.pad: str | int = ""

    def encoded(self, index: Callable[[str, np.ndarray], np.ndarray]) -> "QueryInputs":
        """The same inputs with integers in place of strings, so that batches look up no strings.

        Args:
            index: (name of an input, strings `[n, ...]`) -> integers; the query tower's `index`.
        """
        new = object.__new__(QueryInputs)
        new.__dict__.update(self.__dict__)
        new.users = {
            name: np.asarray(index(name, values.astype(str))) for name, values in self.users.items()
        }
        if "history" in self.names:
            items = self.items.astype(str)[:, None]  # [num_items + 1, 1]
            new.items, new.pad = np.asarray(index("history", items))[:, 0], 0
        return new

    def __call__(self, requests: Requests) -> dict[str, np.ndarray]:
        """Inputs by name, `[num_requests]`, or `[num_requests, longest]` for those of a history.

        A user whom the dataset does not have gets the columns that `requests.context` gives. Events
        with items that the dataset does not have are left out.
        """
        known = requests.history.values < len(self.items) - 1
        if not known.all():
            requests = requests.with_events(known)
        found = (self._lookup.get(user_id, -1) for user_id in requests.user_id)
        rows = np.fromiter(found, np.int64, len(requests))
        return {name: self._input(name, requests, rows) for name in self.names}

    def _input(self, name: str, requests: Requests, rows: np.ndarray) -> np.ndarray:
        """One input. `rows` are the users' rows in `dataset.users`, -1 for unknown users."""
        if name == "user_id" and self.users[name].dtype == object:
            return requests.user_id  # also of users that the dataset does not have
        if name == "history":
            ids = Ragged(self.items[requests.history.values], requests.history.offsets)
            return ids.to_dense(self.pad)
        if name == "history_time":
            return requests.history_time.to_dense(-1)
        if name == "history_rating":
            return requests.history_rating.to_dense(np.nan)
        if name == "time":
            return requests.time
        if name not in self.users:
            return requests.texts(name)
        values = self.users[name][rows]
        if name in requests.context and self.users[name].dtype == object:
            return np.where(rows < 0, requests.context[name], values)
        return values


class ItemInputs:
    """Makes the item tower's raw inputs from keys, with age and popularity as of a given time.

    Args:
        dataset: Source of the items' columns.
        train: Rows of `interactions` that may be looked at.
        names: Inputs of the item tower.

    Raises:
        ValueError: An input that is neither `age`, `popularity` nor a column; or a column of one of
            these two names.

    Example:
        inputs = ItemInputs(dataset, split.train, ["title", "age"])
        inputs(np.array([3, 5]))  # {"title": [2] strings, "age": [2] float32 days}
    """

    def __init__(self, dataset: Dataset, train: np.ndarray, names: Sequence[str]) -> None:
        require_features(dataset, (), names)
        _refuse_twins("items", dataset.items, names, TIME_DEPENDENT)
        self.time_dependent = [name for name in names if name in TIME_DEPENDENT]
        self.static = {
            name: _column(dataset.items[name]) for name in names if name not in self.time_dependent
        }
        times, keys = dataset.timestamps[train], dataset.item_keys[train]
        self.end = int(times.max(initial=0)) + 1
        self._start = int(times.min(initial=0))
        self._span = self.end - self._start + 1
        if "popularity" in self.time_dependent:
            order = np.lexsort((times, keys))
            # One ascending number for each pair (item, time), so that counting the rows of an item
            # before a time is one binary search.
            self._combined = keys[order] * self._span + times[order] - self._start
            self._all_times = np.sort(times)
        self._num_items = len(dataset.items)
        first = np.full(self._num_items, self.end, np.int64)
        np.minimum.at(first, keys, times)
        if "released" in dataset.items:
            released = dataset.items["released"].to_numpy(np.float64)
            first = np.where(np.isnan(released), first, released).astype(np.int64)
        self._first = first

    def __call__(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Name of an input -> values as of the end of training, `[num_keys, ...]`."""
        static = {name: values[keys] for name, values in self.static.items()}
        return static | self.as_of(keys, np.full(len(keys), self.end))

    def as_of(self, keys: np.ndarray, times: np.ndarray) -> dict[str, np.ndarray]:
        """The time-dependent inputs: name -> `[num_keys]` float32, from rows before a time.

        `age` is in days, at least 0. `popularity` is log((n + 1) / (N + num_items)), where N is the
        number of earlier training rows, and n the number of those that have the item.

        Args:
            keys: `[num_keys]` keys of items.
            times: `[num_keys]`, the time for each of them, in seconds.
        """
        keys = np.asarray(keys, np.int64)  # a product of int32 keys would wrap around
        found: dict[str, np.ndarray] = {}
        if "age" in self.time_dependent:
            found["age"] = np.maximum(times - self._first[keys], 0).astype(np.float32) / DAY
        if "popularity" in self.time_dependent:
            elapsed = np.clip(times - self._start, 0, self._span - 1)
            before = np.searchsorted(self._combined, keys * self._span + elapsed)
            before -= np.searchsorted(self._combined, keys * self._span)
            total = np.searchsorted(self._all_times, times)
            share = (before + 1.0) / (total + self._num_items)
            found["popularity"] = np.log(share).astype(np.float32)
        return found


def _column(values: pd.Series) -> np.ndarray:
    """A column as a dense array: tags are padded with "", and vectors are stacked."""
    first = values.iloc[0] if len(values) else 0.0
    if isinstance(first, tuple):
        return Ragged.from_rows(values, object).to_dense("")
    if isinstance(first, np.ndarray):
        return np.stack(values.to_numpy())
    if isinstance(first, str):
        return values.to_numpy(object)
    return values.to_numpy(np.float32)


def _differs(dataset: Dataset, name: str) -> bool:
    """Whether an interaction has another value in a column than its user has."""
    of_event = dataset.interactions[name].to_numpy(object)
    of_user = dataset.users[name].to_numpy(object)[dataset.user_rows]
    return bool(((of_event != "") & (of_event != of_user)).any())


def _refuse_twins(
    table: str, columns: Iterable[str], names: Iterable[str], others: Iterable[str]
) -> None:
    """Raises ValueError if one of `names` is both a column of the table and one of the `others`,
    the inputs that come from the interactions."""
    if twins := sorted(set(names).intersection(columns, others)):
        raise ValueError(
            f"{table} have the columns {twins}, and inputs of these names come from the "
            f"interactions. Rename the columns (such as {table[:-1]}_{twins[0]}) to use either."
        )
