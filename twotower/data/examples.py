"""Examples: which queries and items an epoch of training has, and in which order.

`training/batches.py` makes tensors of such a plan.
"""

import dataclasses
import functools

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.config import ExamplesConfig
from twotower.data.dataset import Dataset
from twotower.data.requests import CONTEXT
from twotower.data.splits import Split
from twotower.ragged import Ragged

# Kinds of events in which an item was shown and not taken.
PASSED_OVER = ("impression", "skip")


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
        known: `[num_rows, 2]`, first and end, as in `history`, of the events whose items are known
            positives.
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
        context: Columns of the request's context that the data has, name -> `[num_rows]` strings.
        user_ids: `[num_users]` strings.
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
        self.context = {
            name: dataset.interactions[name].iloc[self.rows].to_numpy(object)
            for name in CONTEXT
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
        """Keys of the items that each user was shown and never took, `num_users` rows.

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

    def _groups(self, rng: np.random.Generator) -> np.ndarray:
        """The query that each example belongs to in an epoch, `[num_rows]`.

        The items of each user come in random order and are cut into groups of about one size.
        """
        pair, users = self._pairs
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
        return group[pair]

    @functools.cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of each row's (user, item) pair, `[num_rows]`, and row of each pair's user in
        `dataset.users`, `[num_pairs]`.

        Rows of one pair are left out of a history together, since another row of the target would
        reveal it. Pairs are numbered by their first row, so that their users ascend.
        """
        items = self.items.max(initial=0) + 1
        _, first, pair = np.unique(
            self.users * items + self.items, return_index=True, return_inverse=True
        )
        return np.argsort(np.argsort(first))[pair], self.users[np.sort(first)]

    def epoch(self, epoch: int) -> Epoch:
        """The plan of the epoch with this number, counted from 0."""
        rng = np.random.default_rng([self.config.seed, epoch])
        group = self._groups(rng) if self.shared else np.arange(len(self))
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
