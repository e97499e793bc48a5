"""Training batches, made in the graph by tf.data from a few long arrays.

All events are in one array, sorted by user and time, and a history is a range of it. So a batch is
a few slices and gathers, and no Python runs between two batches. (Hard negatives are the exception:
they are drawn in Python.) Which queries and items an epoch has, and in which order, is planned
before it starts (`Examples.epoch`, `Sequences.epoch`).
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from twotower.data.examples import Epoch, Examples
from twotower.data.inputs import ItemInputs, QueryInputs
from twotower.tf import tf
from twotower.training.batch import Batch, no_columns

# Number of batches that are made in parallel, and of batches that are kept ready.
PARALLEL = 2

# The arrays of an epoch's plan.
FLAT, PAIRS = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, None], tf.int64)
PLAN = {
    **dict.fromkeys(("events", "offsets", "batches", "group", "position", "times"), FLAT),
    **dict.fromkeys(("history", "known"), PAIRS),
    "probability": tf.TensorSpec([None], tf.float32),
}


# (user of each row `[num_rows]`, keys of the batch's items `[num_examples]`, random numbers)
# -> keys `[num_rows, h]`. A user is a row of the table of users.
HardNegativesOf = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


class TrainingBatches:
    """Makes the batches of an epoch.

    Args:
        examples: The training rows.
        plan: Number of an epoch -> its queries and items.
        query_inputs: The tables of users and items, encoded, so that a batch looks up no strings.
        sequence_inputs: Names of the query's inputs that have one row for a sequence. Empty if each
            row is one query.
        item_inputs: Computes time-dependent inputs of the item tower.
        probability: `[num_items]`, p_c.
        estimate: Keys of a batch's items -> p_c of each, in place of `probability`. It is called in
            the order of the batches.
        hard_negatives: Chooses the hard negatives of each row; None if there are none.

    `Training.batches` makes one of a recipe. Its batches hold tensors:

        batch = next(iter(training.batches()))
        batch.targets().item  # [num_examples]
    """

    def __init__(
        self,
        examples: Examples,
        plan: Callable[[int], Epoch],
        query_inputs: QueryInputs,
        sequence_inputs: frozenset[str],
        item_inputs: ItemInputs,
        probability: np.ndarray,
        estimate: Callable[[np.ndarray], np.ndarray] | None = None,
        hard_negatives: HardNegativesOf | None = None,
    ) -> None:
        self.examples, self.plan, self.query_inputs = examples, plan, query_inputs
        self.sequence_inputs = sequence_inputs
        self.estimate, self.hard_negatives = estimate, hard_negatives
        self._item = tf.constant(examples.items, tf.int32)
        self._user = tf.constant(examples.users, tf.int32)
        self._times = tf.constant(examples.times, tf.int64)
        self._weight = tf.constant(examples.weights, tf.float32)
        self._probability = tf.constant(probability, tf.float32)
        self._users = {name: tf.constant(table) for name, table in query_inputs.users.items()}
        self._history = tf.constant(query_inputs.items[examples.items])
        self._ratings = tf.constant(examples.ratings)
        self._context = {
            name: tf.constant(examples.context[name].astype(str))
            for name in query_inputs.names
            if name in examples.context
        }
        self._item_inputs = {
            name: tf.constant(values)
            for name, values in item_inputs.as_of(examples.items, examples.times).items()
        }

    def __call__(self, first_epoch: int = 0, num_replicas: int = 1) -> tf.data.Dataset:
        """Batches of one epoch after another: each iteration over them gives the next epoch.

        Args:
            first_epoch: Number of the epoch of the first iteration.
            num_replicas: Number of parts that each batch is cut into by rows: one for each replica
                of a `tf.distribute` strategy.
        """
        epochs = itertools.count(first_epoch)

        def plans() -> Iterator[dict]:
            yield self._planned(next(epochs), num_replicas)

        def batches(plan: dict) -> tf.data.Dataset:
            numbers = tf.data.Dataset.range(tf.size(plan["batches"], tf.int64) - 1)
            return numbers.map(
                lambda number: self._batch(plan, number),
                num_parallel_calls=PARALLEL,
                deterministic=True,
            )

        dataset = tf.data.Dataset.from_generator(plans, output_signature=PLAN)
        dataset = dataset.flat_map(batches)
        if self.hard_negatives is not None:
            dataset = self._with_hard_negatives(dataset, first_epoch, self.hard_negatives)
        # There is nothing to tune. On one core the thread of the tuner sleeps for up to a minute
        # when an iterator ends, and the next epoch would wait for it.
        options = tf.data.Options()
        options.autotune.enabled = False
        dataset = dataset.map(lambda batch, _: batch).with_options(options)
        return dataset.prefetch(PARALLEL)

    def _planned(self, number: int, num_replicas: int) -> dict[str, np.ndarray]:
        """The arrays of an epoch's plan, as in `PLAN`; empty if there is none."""
        epoch = self.plan(number)
        batches, offsets = epoch.batches, epoch.targets.offsets
        probability, none = np.empty(0, np.float32), np.empty(0, np.int64)
        if self.estimate is not None:
            items = self.examples.items[epoch.targets.values]
            cuts = offsets[batches[1:-1]]
            probability = np.concatenate([self.estimate(part) for part in np.split(items, cuts)])
        if num_replicas > 1:
            share = np.arange(num_replicas) / num_replicas
            starts, sizes = batches[:-1, None], np.diff(batches)[:, None]
            batches = np.append((starts + (sizes * share).astype(np.int64)).ravel(), batches[-1])
        return {
            "events": epoch.targets.values,
            "offsets": offsets,
            "batches": batches,
            "history": epoch.history,
            "known": epoch.known,
            "group": epoch.group,
            "position": epoch.position,
            "times": epoch.times if "history_time" in self.query_inputs.names else none,
            "probability": probability.astype(np.float32),
        }

    def _batch(self, plan: dict, number: tf.Tensor) -> tuple[Batch, tf.Tensor]:
        """(a batch without hard negatives; the user of each of its rows, `[num_rows]`)."""
        rows = slice(plan["batches"][number], plan["batches"][number + 1])
        offsets = plan["offsets"][rows.start : rows.stop + 1]
        of_targets = slice(offsets[0], offsets[-1])
        events = plan["events"][of_targets]  # [num_examples]
        splits = offsets - offsets[0]

        def dense(values: tf.Tensor, fill) -> tf.Tensor:
            """`[num_examples]` -> `[num_rows, num_targets]`."""
            ragged = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
            return ragged.to_tensor(fill)

        first = tf.gather(events, splits[:-1])  # the first example of each row
        known = _ranges(plan["known"][rows])
        item = tf.gather(self._item, events)
        position = num_earlier = no_columns(first)
        if self.sequence_inputs:
            position = dense(tf.cast(plan["position"][of_targets], tf.int32), 0)
            before = events - tf.repeat(plan["known"][rows][:, 0], splits[1:] - splits[:-1])
            num_earlier = dense(tf.cast(before, tf.int32), 0)
        probability = tf.gather(self._probability, item)
        if self.estimate is not None:
            probability = plan["probability"][of_targets]
        batch = Batch(
            query=self._query(plan, rows, events, first, dense),
            item=dense(item, -1),
            weight=dense(tf.gather(self._weight, events), 0.0),
            probability=dense(probability, 1.0),
            known_positives=known.with_flat_values(tf.gather(self._item, known.flat_values)),
            position=position,
            num_earlier=num_earlier,
            item_inputs={
                name: dense(tf.gather(values, events), 0.0)
                for name, values in self._item_inputs.items()
            },
            hard_negatives=no_columns(first),
        )
        return batch, tf.gather(self._user, first)

    def _query(self, plan: dict, rows: slice, events, first, dense) -> dict[str, tf.Tensor]:
        """The query tower's inputs."""
        history = self._history_events(plan, rows, first)

        def of_history(values: tf.Tensor, fill) -> tf.Tensor:
            return history.with_flat_values(tf.gather(values, history.flat_values)).to_tensor(fill)

        def of_query(column: Callable[[tf.Tensor], tf.Tensor], fill) -> tf.Tensor:
            """`column(events)` of each query: of a sequence's examples, or of a row's one query."""
            return dense(column(events), fill) if self.sequence_inputs else column(first)

        def values(name: str) -> tf.Tensor:
            if name == "history":
                return of_history(self._history, self.query_inputs.pad)
            if name == "history_time":
                return of_history(plan["times"], -1)
            if name == "history_rating":
                return of_history(self._ratings, np.nan)
            if name == "time" and name in self.sequence_inputs:
                # The request time of a sequence's last query. The other queries of the sequence are
                # asked at the times of its events.
                return self._request(plan["known"][rows][:, 1] - 1)
            if name == "time":
                return of_query(self._request, -1)
            if name in self._users:
                fill = "" if self._users[name].dtype == tf.string else 0
                return of_query(functools.partial(self._of_users, name), fill)
            if name in self._context and self.examples.alone:
                return of_query(functools.partial(tf.gather, self._context[name]), "")
            return tf.fill(tf.shape(first), "")

        return {name: values(name) for name in self.query_inputs.names}

    def _of_users(self, name: str, events: tf.Tensor) -> tf.Tensor:
        """A column of the users, for the user of each event."""
        return tf.gather(self._users[name], tf.gather(self._user, events))

    def _request(self, events: tf.Tensor) -> tf.Tensor:
        """Request times of events, int64; -1 if the protocol does not give the request time."""
        if self.examples.knows_request_time and self.examples.alone:
            return tf.gather(self._times, events)
        return tf.fill(tf.shape(events), tf.constant(-1, tf.int64))

    def _history_events(self, plan: dict, rows: slice, first: tf.Tensor) -> tf.RaggedTensor:
        """Indices of the events of each row's history, oldest first, `[num_rows, (n)]`."""
        bounds, longest = plan["history"][rows], self.examples.config.max_history
        if not self.examples.shared:
            if longest:
                start = tf.maximum(bounds[:, 0], bounds[:, 1] - longest)
                bounds = tf.stack([start, bounds[:, 1]], 1)
            return _ranges(bounds)
        history = _ranges(bounds)
        group = tf.gather(plan["group"], first)  # [num_rows]
        is_other = tf.gather(plan["group"], history.flat_values) != tf.gather(
            group, history.value_rowids()
        )
        history = tf.ragged.boolean_mask(history, history.with_flat_values(is_other))
        return history[:, -longest:] if longest else history

    def _with_hard_negatives(
        self, dataset: tf.data.Dataset, epoch: int, hard_negatives: HardNegativesOf
    ) -> tf.data.Dataset:
        """Batches with the hard negatives of each row."""
        rng = np.random.default_rng([self.examples.config.seed, epoch])

        def chosen(users: np.ndarray, items: np.ndarray) -> np.ndarray:
            return hard_negatives(users, items, rng).astype(np.int32)

        def with_them(batch: Batch, users: tf.Tensor) -> tuple[Batch, tf.Tensor]:
            items = batch.of_targets(batch.item)
            hard = tf.numpy_function(chosen, [users, items], tf.int32, stateful=True)
            return batch._replace(hard_negatives=tf.ensure_shape(hard, [None, None])), users

        return dataset.map(with_them)


def _ranges(bounds: tf.Tensor) -> tf.RaggedTensor:
    """`[num_rows, 2]` starts and ends -> the integers from start to end, `[num_rows, (n)]`."""
    return tf.ragged.range(bounds[:, 0], bounds[:, 1])
