"""From rows of the data to the inputs of the towers and the examples of training.

`QueryInputs` turns requests into inputs of the query tower, and `ItemInputs` turns keys of items
into inputs of the item tower, with age and popularity as of a given time. `Examples` plans which
queries and items an epoch of training has, and in which order; `training/batches.py` makes tensors
of it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from twotower.data.cases import EvalCases
from twotower.data.columns import refuse_twins
from twotower.data.config import ExamplesConfig
from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.data.splits import Split
from twotower.ragged import Ragged

DAY = 86_400.0
# Kinds of events in which an item was shown and not taken.
PASSED_OVER = ("impression", "skip")


# Inputs that come from a request itself; all others are columns of its user.
COMPUTED = ("history", "history_time", "history_rating", "time")
REQUEST_INPUTS = (*COMPUTED, "search_text", "device", "country")


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
        ValueError: An input that is no column of users, and no part of a history or a request.

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
        refuse_twins("users", dataset.users, names, COMPUTED)
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
            index: (name of an input, strings) -> integers; the query tower's `index`.
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
        inputs: dict[str, np.ndarray] = {}
        for name in self.names:
            if name == "user_id" and self.users[name].dtype == object:
                inputs[name] = requests.user_id  # also of users that the dataset does not have
            elif name == "history":
                ids = Ragged(self.items[requests.history.values], requests.history.offsets)
                inputs[name] = ids.to_dense(self.pad)
            elif name == "history_time":
                inputs[name] = requests.history_time.to_dense(-1)
            elif name == "history_rating":
                inputs[name] = requests.history_rating.to_dense(np.nan)
            elif name == "time":
                inputs[name] = requests.time
            elif name in self.users:
                inputs[name] = self.users[name][rows]
                if name in requests.context and self.users[name].dtype == object:
                    inputs[name] = np.where(rows < 0, requests.context[name], inputs[name])
            else:
                inputs[name] = requests.texts(name)
        return inputs


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
        known = {"age", "popularity", *dataset.items}
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"unknown item features {unknown}; this dataset has {sorted(known)}.")
        refuse_twins("items", dataset.items, names, computed=("age", "popularity"))
        self.time_dependent = [name for name in names if name in ("age", "popularity")]
        self.static = {
            name: _column(dataset.items[name]) for name in names if name not in self.time_dependent
        }
        times, keys = dataset.timestamps[train], dataset.item_keys[train]
        self.end = int(times.max(initial=0)) + 1
        order = np.lexsort((times, keys))
        self._start = int(times.min(initial=0))
        self._span = self.end - self._start + 1
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
            at = np.clip(times - self._start, 0, self._span - 1)
            before = np.searchsorted(self._combined, keys * self._span + at)
            before -= np.searchsorted(self._combined, keys * self._span)
            total = np.searchsorted(self._all_times, times)
            share = (before + 1.0) / (total + self._num_items)
            found["popularity"] = np.log(share).astype(np.float32)
        return {name: values.astype(np.float32) for name, values in found.items()}


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


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The queries and items of an epoch, in their order.

    A row is a query with the items that it should find, or a sequence of events with several
    queries. Events are given by their index in `Examples.rows`.

    Attributes:
        targets: The events to predict, `num_rows` rows.
        batches: `[num_batches + 1]`, first row of each batch, and the number of rows.
        history: `[num_rows, 2]`, the first event of each row's history, and the end: the index
            after its last event.
        known: `[num_rows, 2]`, likewise the events whose items are known positives.
        group: `[num_events]`. Events of the same group as a row's targets are left out of its
            history. Empty if nothing is left out.
        position: `[num_targets]`, how many events of its row each target's query reads. Empty if a
            row is one query.
        times: `[num_events]`, times of events in seconds, as histories show them.

        epoch = examples.epoch(0)
        examples.items[epoch.targets[0]]  # keys of the items that the first query should find
    """

    targets: Ragged
    batches: np.ndarray
    history: np.ndarray
    known: np.ndarray
    group: np.ndarray
    position: np.ndarray
    times: np.ndarray


class Examples:
    """The training examples of a split. Their order changes each epoch, and depends on the seed.

    Args:
        dataset: The data.
        split: Which rows train, and whether histories are `before` or `others`.
        config: Batches and weights.

    Attributes:
        rows: `[num_rows]`, training rows of `interactions`, by user, then time.
        users: `[num_rows]`, row of each one's user in `dataset.users`.
        items: `[num_rows]`, key of each one's item.
        times: `[num_rows]` int64 seconds.
        ratings: `[num_rows]` float32, NaN for none.
        by_user: Indices into `rows`, a row for each user.
        draws: `[num_rows]`, how often an epoch draws each example, on average.
        weights: `[num_rows]`, weight of each draw in the loss.
        knows_request_time: Whether queries have the time of the request (protocols `+time`).

    Example:
        examples = Examples(dataset, make_split(dataset, "random"), ExamplesConfig())
        examples.epoch(0).targets  # indices into examples.rows, a row for each query
    """

    def __init__(self, dataset: Dataset, split: Split, config: ExamplesConfig) -> None:
        self.config, self.split = config, split
        self.knows_request_time = "+time" in split.protocol
        users, times = dataset.user_rows[split.train], dataset.timestamps[split.train]
        # Training rows by user, then time, ties in file order; `train` ascends, so it is stable.
        self.rows = split.train[np.lexsort((times, users))]
        self.users = dataset.user_rows[self.rows]
        self.items = dataset.item_keys[self.rows]
        self.times = dataset.timestamps[self.rows]
        self.ratings = (
            dataset.interactions["rating"].to_numpy(np.float32)[self.rows]
            if "rating" in dataset.interactions
            else np.full(len(self.rows), np.nan, np.float32)
        )
        num_users = len(dataset.users)
        self.by_user = Ragged.from_lengths(
            np.arange(len(self.rows)), np.bincount(self.users, minlength=num_users)
        )
        # Rows of the same user and item are left out together, since a history with another row of
        # the target would reveal it. Pairs are numbered by their first row, so users still ascend.
        _, first, pair = np.unique(
            self.users * len(dataset.items) + self.items, return_index=True, return_inverse=True
        )
        self.pair = np.argsort(np.argsort(first))[pair]  # [num_rows]
        self.pair_users = self.users[np.sort(first)]  # [num_pairs]
        self.context = {
            name: dataset.interactions[name].to_numpy(object)[self.rows]
            for name in ("search_text", "device", "country")
            if name in dataset.interactions
        }
        self.user_ids = dataset.users["user_id"].to_numpy(object)
        self._dataset = dataset
        self.draws = self._draws(len(dataset.items))
        self.weights = self._weights(dataset) / self.draws

    def whole_histories(self) -> EvalCases:
        """A case for each user of the dataset with all training rows (at most the last
        `max_history`) as its history, without request time, context or targets."""
        events, none = self.by_user, Ragged.empty(len(self.by_user))
        if self.config.max_history:
            events = events.last(self.config.max_history)
        return EvalCases(
            user_id=self.user_ids,
            history=Ragged(self.items[events.values], events.offsets),
            history_time=Ragged(self.times[events.values], events.offsets),
            history_rating=Ragged(self.ratings[events.values], events.offsets),
            exclude=none,
            targets=none,
            time=np.full(len(self.by_user), -1),
        )

    def passed_over(self) -> Ragged:
        """Keys of the items that each user was shown and never took, a row for each user.

        These are the items of impressions and skips up to the user's last training row, without the
        items of the user's training rows.
        """
        dataset, num_items = self._dataset, len(self._dataset.items)
        if "event" not in dataset.interactions:
            return Ragged.empty(len(dataset.users))
        shown = np.flatnonzero(dataset.interactions["event"].isin(PASSED_OVER))
        last = np.full(len(dataset.users), -1, np.int64)
        np.maximum.at(last, self.users, self.times)
        users, items = dataset.user_rows[shown], dataset.item_keys[shown]
        keep = dataset.timestamps[shown] <= last[users]
        pairs = np.unique(users[keep] * num_items + items[keep])
        pairs = pairs[~np.isin(pairs, self.users * num_items + self.items)]
        lengths = np.bincount(pairs // num_items, minlength=len(dataset.users))
        return Ragged.from_lengths(pairs % num_items, lengths)

    def _draws(self, num_items: int) -> np.ndarray:
        """How often an epoch draws each example, on average, `[num_rows]`."""
        if not self.config.stratify:
            return np.ones(len(self.rows), np.float32)
        count = np.bincount(self.items, minlength=num_items)[self.items]
        draws = (count / len(self.rows)) ** -self.config.stratify
        return (draws * len(draws) / draws.sum()).astype(np.float32)

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """The examples that an epoch draws, ascending indices into `rows`.

        Systematic sampling draws each example `floor(draws)` times or once more, and as many in all
        as there are examples.
        """
        reached = np.floor(np.cumsum(self.draws, dtype=np.float64) + rng.random()).astype(np.int64)
        return np.repeat(np.arange(len(self)), np.diff(reached, prepend=0))

    def _weights(self, dataset: Dataset) -> np.ndarray:
        """The weight of each example, `[num_rows]`, with mean 1."""
        name = self.config.weight
        if not name:
            return np.ones(len(self.rows), np.float32)
        if name not in dataset.interactions:
            raise ValueError(f"no column {name!r} to weigh examples by.")
        column = dataset.interactions[name]
        if column.dtype.kind not in "biuf":
            raise ValueError(f"weights from {name!r} must be numbers; got {column.dtype}.")
        weights = column.to_numpy(np.float32)[self.rows]
        known = weights[~np.isnan(weights)]
        if not known.any() or (known < 0).any():
            raise ValueError(
                f"weights from {name!r} must not be negative, nor all zero or missing in the "
                'training rows. Mend the column, or set weight="" to weigh all rows alike.'
            )
        mean = np.nanmean(weights)
        return np.where(np.isnan(weights), mean, weights) / mean

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shared(self) -> bool:
        """Whether several examples of a user can share a query."""
        return self.split.history == "others"

    @property
    def alone(self) -> bool:
        """Whether each query has one example, so that it may have that example's time and
        context."""
        alone = self.config.targets_per_query == 1 and not self.config.targets_share
        return not self.shared or alone

    def epoch(self, epoch: int) -> Epoch:
        """The plan of the epoch with this number, counted from 0."""
        rng = np.random.default_rng([self.config.seed, epoch])
        if self.shared:
            # The items of each user in random order, cut into groups.
            users = self.pair_users
            order = np.lexsort((rng.random(len(users)), users))
            number = np.arange(len(users)) - np.searchsorted(users, users)
            count = np.bincount(users)[users]
            share, spread = self.config.targets_share, self.config.targets_share_spread
            if spread:
                share = (share + rng.uniform(-spread, spread, len(self.by_user)))[users]
            size = np.ceil(share * count).astype(np.int64)
            first = number % np.maximum(size, self.config.targets_per_query) == 0
            group = np.empty(len(users), np.int64)
            group[order] = np.cumsum(first) - 1
            group = group[self.pair]
        else:
            group = np.arange(len(self))
        drawn, query = np.arange(len(self)), group
        if self.config.stratify:
            drawn = self._drawn(rng)
            copy = np.arange(len(drawn)) - np.searchsorted(drawn, drawn)
            group_and_copy = group[drawn] * (copy.max(initial=0) + 1) + copy
            query = np.unique(group_and_copy, return_inverse=True)[1]
        members = Ragged.group(drawn, query, int(query.max(initial=-1)) + 1)
        targets = members.take(rng.permutation(len(members)))
        batches = np.searchsorted(targets.offsets, np.arange(0, len(drawn), self.config.batch_size))
        first = targets.values[targets.offsets[:-1]]  # the first example of each query
        start, stop = (self.by_user.offsets[self.users[first] + step] for step in (0, 1))
        return Epoch(
            targets,
            np.unique([*batches, len(targets)]),  # a query can be larger than a batch
            history=np.stack([start, stop if self.shared else first], 1),
            known=np.stack([start, stop], 1),
            group=group if self.shared else np.empty(0, np.int64),
            position=np.empty(0, np.int64),
            times=self.times,
        )
