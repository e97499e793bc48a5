"""Hard negatives: columns that count for one query only, beside those that all rows share.

They are mined (`mining.py`) or impressions without a click. Each is one more column of the score
matrix, whose weight is 0 in the rows that do not have it.
"""

import dataclasses

import numpy as np

from twotower.objective.config import NegativesConfig
from twotower.objective.corrections import (
    MASKED,
    column_counts,
    column_of_item,
    hard_negative_weight,
)
from twotower.objective.negatives import Columns, Encode, Negatives, Targets, merged
from twotower.tf import require_one_replica, tf


class HardNegatives(Negatives):
    """`Negatives` with the columns of `Targets.hard_negatives` beside the shared ones.

    `log_weight` of the columns is `[num_rows, num_columns]`, since rows differ.

    Args:
        config: As in `Negatives`.
        probability: As in `Negatives`.
        dim: Length of the vectors.

    Raises:
        ValueError: A distribution strategy with several replicas. Each would count only its own
            part of the batch: it would take too few mined negatives, and under `log_q` weigh all
            hard negatives too little.

    Two examples with the items 0 and 1. Item 2 is a hard negative of the first row alone:

    >>> from twotower.objective.negatives import NegativesConfig
    >>> config = NegativesConfig(("batch",), hard_negative_share=0.5)
    >>> negatives = HardNegatives(config, [0.5, 0.25, 0.25], dim=1)
    >>> targets = Targets(
    ...     row=tf.constant([0, 1]),
    ...     item=tf.constant([0, 1]),
    ...     weight=tf.ones(2),
    ...     probability=tf.constant([0.5, 0.25]),
    ...     inputs={},
    ...     hard_negatives=tf.constant([[2], [-1]]),
    ... )
    >>> columns, _ = negatives(targets, lambda keys: tf.ones([len(keys), 1]), correction="none")
    >>> columns.keys.numpy().tolist(), tf.exp(columns.log_weight).numpy().tolist()
    ([0, 1, 2], [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    """

    def __init__(self, config: NegativesConfig, probability: np.ndarray, dim: int) -> None:
        super().__init__(config, probability, dim)
        require_one_replica("hard_negative_share or num_impressions")

    def __call__(
        self, targets: Targets, encode: Encode, correction: str, training: bool = False
    ) -> tuple[Columns, tf.Tensor]:
        flat = tf.reshape(targets.hard_negatives, [-1])
        hard = tf.unique(tf.boolean_mask(flat, flat >= 0)).y
        shared = [*self.draw(targets, correction).values()]
        columns = merged([*shared, Columns(hard, tf.fill(tf.shape(hard), MASKED))])
        columns, positives = self.encoded(columns, targets.item, encode)
        num_draws = self.config.num_shared(tf.size(targets.item), len(self.keys))
        count = self.counted(targets.hard_negatives, columns.keys)
        more = count * hard_negative_weight(num_draws, correction)
        weight = tf.math.log(tf.exp(columns.log_weight) + more)
        return dataclasses.replace(columns, log_weight=tf.maximum(weight, MASKED)), positives

    def counted(self, hard_negatives: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
        """How often each column is a hard negative of each row, `[num_rows, num_columns]` float32.

        Args:
            hard_negatives: `[num_rows, h]` int32 keys, -1 for none.
            keys: `[num_columns]` distinct int32 keys of the columns.
        """
        there = hard_negatives >= 0
        column = tf.gather(column_of_item(keys, self.num_items), tf.maximum(hard_negatives, 0))
        counts = column_counts(tf.where(there, column, 0), tf.size(keys))
        return tf.cast(counts, tf.float32)
