"""Batch: what a training step reads."""

from typing import NamedTuple

import numpy as np

from twotower.objective.negatives import Targets
from twotower.tf import tf


class Batch(NamedTuple):
    """What a training step reads.

    A row is a query with the items that it should find; or a sequence of events with several
    queries, one after each of some of its events. No row depends on another one, so a batch can be
    cut between any two rows.

    Attributes:
        query: Inputs of the query tower, name -> `[num_rows, ...]`. If rows are sequences, inputs
            other than the history have a value for each query: `[num_rows, num_targets]`.
        item: `[num_rows, num_targets]` int32 keys of the items to find, padded with -1.
        weight: `[num_rows, num_targets]` float32, weight of each item in the loss.
        probability: `[num_rows, num_targets]` float32, p_c: the probability that an example of the
            batch has this item.
        known_positives: `[num_rows, (n)]` int32 keys of the items that the row's user is known to
            like, the targets included. For a sequence these are the user's events up to its end,
            oldest first.
        position: `[num_rows, num_targets]` int32, how many events of the sequence each query reads;
            `[num_rows, 0]` if each row is one query.
        num_earlier: `[num_rows, num_targets]` int32, how many of `known_positives` come before the
            target; `[num_rows, 0]` if each row is one query.
        item_inputs: Inputs of the item tower that depend on the time of the example, name ->
            `[num_rows, num_targets]` float32.
        hard_negatives: `[num_rows, h]` int32 keys of negatives of this row alone; -1 for none.

    Two queries, the first with two items to find:

    >>> batch = Batch(
    ...     query={"history": tf.constant([[3, 5], [4, 0]])},
    ...     item=tf.constant([[0, 2], [1, -1]]),
    ...     weight=tf.ones([2, 2]),
    ...     probability=tf.fill([2, 2], 0.25),
    ...     known_positives=tf.ragged.constant([[0, 2, 4], [1, 3]]),
    ...     position=tf.zeros([2, 0], tf.int32),
    ...     num_earlier=tf.zeros([2, 0], tf.int32),
    ...     item_inputs={},
    ...     hard_negatives=tf.zeros([2, 0], tf.int32),
    ... )
    >>> targets = batch.targets()
    >>> targets.row.numpy().tolist(), targets.item.numpy().tolist()
    ([0, 0, 1], [0, 2, 1])
    """

    query: dict[str, tf.Tensor]
    item: tf.Tensor
    weight: tf.Tensor
    probability: tf.Tensor
    known_positives: tf.RaggedTensor
    position: tf.Tensor
    num_earlier: tf.Tensor
    item_inputs: dict[str, tf.Tensor]
    hard_negatives: tf.Tensor

    @property
    def is_sequences(self) -> bool:
        """Whether rows are sequences with several queries."""
        return self.position.shape[1] != 0

    def targets(self) -> Targets:
        """The examples of all rows, one after another."""
        cells = tf.where(self.item >= 0)  # [num_examples, 2]
        item, weight, probability = (
            tf.gather_nd(values, cells) for values in (self.item, self.weight, self.probability)
        )
        inputs = {name: tf.gather_nd(values, cells) for name, values in self.item_inputs.items()}
        row = tf.cast(cells[:, 0], tf.int32)
        return Targets(row, item, weight, probability, inputs, self.hard_negatives)

    def of_targets(self, values: tf.Tensor) -> tf.Tensor:
        """`[num_rows, num_targets, ...]` -> `[num_examples, ...]`, in the order of `targets`."""
        return tf.gather_nd(values, tf.where(self.item >= 0))


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    """Inputs as tensors, name -> tensor of the same shape. Arrays of objects hold strings."""
    return {
        name: tf.constant(values, tf.string if values.dtype == object else None)
        for name, values in inputs.items()
    }


def no_columns(rows: tf.Tensor) -> tf.Tensor:
    """An empty field of a batch, `[num_rows, 0]` int32, for `rows` `[num_rows, ...]`."""
    return tf.ensure_shape(tf.zeros([tf.shape(rows)[0], 0], tf.int32), [None, 0])
