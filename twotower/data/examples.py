"""From rows to queries: each history, age and popularity as of its example's time.

`QueryInputs` turns cases into the inputs of the query tower, and `ItemInputs` keys into those of
the item tower, for evaluation and serving. `Examples` says what an epoch of training asks, in which
order; `training/batches.py` makes tensors of it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.columns import refuse_twins
from twotower.data.config import ExamplesConfig
from twotower.data.dataset import Dataset
from twotower.data.splits import Split
from twotower.ragged import Ragged

DAY = 86_400.0
# Events of an item that was shown and not taken.
PASSED_OVER = ("impression", "skip")


class QueryInputs:
    """Cases -> the query tower's inputs, as raw values or, after `encoded`, as integers.

    Args:
        dataset: Gives users' columns and items' ids.
        names: Inputs of the query tower.

    Attributes:
        users: Input -> its value for each user of the dataset, and for one who is not in it,
            `[num_users + 1]`.
        items: The id of each item by key, `[num_items + 1]`; strings, or integers once encoded.
        pad: What stands behind the end of a history.

    Raises:
        ValueError: An input that neither users, nor the history, nor the context can give.
    """

    def __init__(self, dataset: Dataset, names: Sequence[str]) -> None:
        self.names = list(names)
        computed = ("history", "history_time", "history_rating", "time")
        known = {*computed, "search_text", "device", "country", *dataset.users}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"no such query inputs: {unknown}; there are {sorted(known)}.")
        refuse_twins("users", dataset.users, names, computed)
        self._lookup = {user_id: row for row, user_id in enumerate(dataset.users["user_id"])}
        # A last row for users the dataset does not have: all their columns are missing.
        self.users = {
            name: np.append(dataset.users[name].to_numpy(object), "")
            for name in names
            if name in dataset.users
        }
        self.items = np.append(dataset.items["item_id"].to_numpy(object), "")
        self.pad: str | int = ""

    def encoded(self, index: Callable[[str, np.ndarray], np.ndarray]) -> "QueryInputs":
        """The same with users' columns and items' ids looked up once, so that batches are cheap.

        Args:
            index: `(input, strings) -> integers`; the query tower's `index`.
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

    def __call__(self, cases: EvalCases) -> dict[str, np.ndarray]:
        """Inputs by name, `[num_cases]` or, for sequences, `[num_cases, longest]`."""
        rows = np.fromiter((self._lookup.get(u, -1) for u in cases.user_id), np.int64, len(cases))
        inputs: dict[str, np.ndarray] = {}
        for name in self.names:
            if name == "user_id" and self.users[name].dtype == object:
                inputs[name] = cases.user_id  # also of users that the dataset does not have
            elif name == "history":
                ids = Ragged(self.items[cases.history.values], cases.history.offsets)
                inputs[name] = ids.to_dense(self.pad)
            elif name == "history_time":
                inputs[name] = cases.history_time.to_dense(-1)
            elif name == "history_rating":
                inputs[name] = cases.history_rating.to_dense(np.nan)
            elif name == "time":
                inputs[name] = cases.time
            elif name in self.users:
                inputs[name] = self.users[name][rows]
            else:
                inputs[name] = cases.context.get(name, np.full(len(cases), "", object))
        return inputs


class ItemInputs:
    """Keys -> the item tower's raw inputs, with age and popularity as of a time.

    Args:
        dataset: Gives items' columns.
        train: Rows of `interactions` that may be looked at.
        names: Inputs of the item tower.

    Raises:
        ValueError: An input that is neither computed (`age`, `popularity`) nor a column, or both.
    """

    def __init__(self, dataset: Dataset, train: np.ndarray, names: Sequence[str]) -> None:
        known = {"age", "popularity", *dataset.items}
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"unknown item features {unknown}; this dataset has {sorted(known)}.")
        refuse_twins("items", dataset.items, names, computed=("age", "popularity"))
        self.timed = [name for name in names if name in ("age", "popularity")]
        self.static = {
            name: _column(dataset.items[name]) for name in names if name not in self.timed
        }
        times, keys = dataset.timestamps[train], dataset.item_keys[train]
        self.end = int(times.max(initial=0)) + 1
        order = np.lexsort((times, keys))
        self._start = int(times.min(initial=0))
        self._span = self.end - self._start + 1
        # One ascending number for (item, time): a count before a time is one binary search.
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
        """Raw inputs of items as of the end of training, `[num_keys, ...]`."""
        static = {name: values[keys] for name, values in self.static.items()}
        return static | self.as_of(keys, np.full(len(keys), self.end))

    def as_of(self, keys: np.ndarray, times: np.ndarray) -> dict[str, np.ndarray]:
        """The timed inputs, each from rows strictly before its time, `[num_keys]` float32.

        `age` is in days, at least 0. `popularity` is log((n + 1) / (N + num_items)) with n of the
        N earlier training rows being of the item.
        """
        keys, timed = np.asarray(keys, np.int64), {}  # a product of int32 keys would wrap around
        if "age" in self.timed:
            timed["age"] = np.maximum(times - self._first[keys], 0).astype(np.float32) / DAY
        if "popularity" in self.timed:
            at = np.clip(times - self._start, 0, self._span - 1)
            before = np.searchsorted(self._combined, keys * self._span + at)
            before -= np.searchsorted(self._combined, keys * self._span)
            total = np.searchsorted(self._all_times, times)
            share = (before + 1.0) / (total + self._num_items)
            timed["popularity"] = np.log(share).astype(np.float32)
        return {name: values.astype(np.float32) for name, values in timed.items()}


def _column(values) -> np.ndarray:
    """A column in its form as a dense array: tags padded with "", vectors stacked."""
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
    """What one epoch asks, in its order. A place is an index into `Examples.rows`.

    A row is a query with the items that it should find, or a sequence with several queries.

    Attributes:
        targets: Places of each row's examples, `[num_rows]` rows.
        batches: The first row of each batch, and the number of rows, `[num_batches + 1]`.
        history: First place of each row's history, and the place behind its last, `[num_rows, 2]`.
        known: The same of the known positives.
        group: `[num_places]`. Events of the same group as the row's examples are left out of its
            history. Empty where nothing is left out.
        position: Of each target, how many events of its row are read before it, `[num_targets]`.
            Empty where a row is one query.
        times: `[num_places]`, the times of events as a history shows them.
    """

    targets: Ragged
    batches: np.ndarray
    history: np.ndarray
    known: np.ndarray
    group: np.ndarray
    position: np.ndarray
    times: np.ndarray


class Examples:
    """The training examples of a split, in a new order each epoch, the same for the same seed.

    Args:
        dataset: The data.
        split: Which rows train, and whether histories are `before` or `others`.
        config: Batching.

    Attributes:
        rows: Training rows by user, then time, `[num_rows]`.
        users: Row of each one's user, likewise.
        items: Key of its item.
        draws: How often an epoch draws it, on average.
        weights: What each draw weighs in the loss.
        time_told: Whether queries are told the time of the request (`+time`).
    """

    def __init__(self, dataset: Dataset, split: Split, config: ExamplesConfig) -> None:
        self.config, self.split = config, split
        self.time_told = "+time" in split.protocol
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
        # Rows of one user and item are one thing to leave out: a history that held the target's
        # other row would give it away. Numbered by first row, so users still ascend.
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

    def histories(self, places: Ragged) -> dict[str, Ragged]:
        """History columns of EvalCases from places in `rows`, the last `max_history` of each."""
        if self.config.max_history:
            places = places.last(self.config.max_history)
        columns = {"history": self.items, "history_time": self.times}
        columns["history_rating"] = self.ratings
        return {
            name: Ragged(column[places.values], places.offsets) for name, column in columns.items()
        }

    def whole_histories(self) -> EvalCases:
        """A query for each user of the dataset, from all training rows, without time or context."""
        none = Ragged.empty(len(self.by_user))
        return EvalCases(
            user_id=self.user_ids,
            **self.histories(self.by_user),
            exclude=none,
            targets=none,
            time=np.full(len(self.by_user), -1),
        )

    def passed_over(self) -> Ragged:
        """Keys of the items that each user was shown up to the user's last training row and neither
        clicked nor watched in any, one row a user (impressions without a click, and skips)."""
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
        if not self.config.stratify:
            return np.ones(len(self.rows), np.float32)
        count = np.bincount(self.items, minlength=num_items)[self.items]
        draws = (count / len(self.rows)) ** -self.config.stratify
        return (draws * len(draws) / draws.sum()).astype(np.float32)

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Places in `rows` that an epoch draws, ascending, by systematic sampling, which draws each
        `floor(draws)` or one more times and in all as many as there are."""
        reached = np.floor(np.cumsum(self.draws, dtype=np.float64) + rng.random()).astype(np.int64)
        return np.repeat(np.arange(len(self)), np.diff(reached, prepend=0))

    def _weights(self, dataset: Dataset) -> np.ndarray:
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
        """Whether examples of a user share queries."""
        return self.split.history == "others"

    @property
    def alone(self) -> bool:
        """Whether each query has one example, so that it may know that example's context."""
        alone = self.config.targets_per_query == 1 and not self.config.targets_share
        return not self.shared or alone

    def epoch(self, epoch: int) -> Epoch:
        """What the epoch of this number asks."""
        rng = np.random.default_rng([self.config.seed, epoch])
        if self.shared:
            # A random order inside each user, cut into groups.
            users = self.pair_users
            order = np.lexsort((rng.random(len(users)), users))
            place = np.arange(len(users)) - np.searchsorted(users, users)
            count = np.bincount(users)[users]
            share, spread = self.config.targets_share, self.config.targets_share_spread
            if spread:
                share = (share + rng.uniform(-spread, spread, len(self.by_user)))[users]
            size = np.ceil(share * count).astype(np.int64)
            first = place % np.maximum(size, self.config.targets_per_query) == 0
            group = np.empty(len(users), np.int64)
            group[order] = np.cumsum(first) - 1
            group = group[self.pair]
        else:
            group = np.arange(len(self))
        drawn, query = np.arange(len(self)), group
        if self.config.stratify:
            drawn = self._drawn(rng)
            copy = np.arange(len(drawn)) - np.searchsorted(drawn, drawn)
            one = group[drawn] * (copy.max(initial=0) + 1) + copy
            query = np.unique(one, return_inverse=True)[1]
        members = Ragged.group(drawn, query, int(query.max(initial=-1)) + 1)
        targets = members.take(rng.permutation(len(members)))
        batches = np.searchsorted(targets.offsets, np.arange(0, len(drawn), self.config.batch_size))
        first = targets.values[targets.offsets[:-1]]  # the first example of each query
        start, stop = (self.by_user.offsets[self.users[first] + more] for more in (0, 1))
        return Epoch(
            targets,
            np.unique([*batches, len(targets)]),  # a query of several batches' size begins none
            history=np.stack([start, stop if self.shared else first], 1),
            known=np.stack([start, stop], 1),
            group=group if self.shared else np.empty(0, np.int64),
            position=np.empty(0, np.int64),
            times=self.times,
        )
