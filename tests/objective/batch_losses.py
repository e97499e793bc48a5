"""The loss of a batch whose columns are its distinct items, as a whole and of each example."""

import numpy as np

from twotower.objective.corrections import column_log_weight
from twotower.objective.negatives import Columns, NegativesConfig, Targets
from twotower.objective.task import RetrievalTask, TaskConfig
from twotower.tf import tf

LOG = np.log


def in_batch(config, queries, items, row, column, p, own=None, weight=None):
    """Mean loss over a batch whose columns are its distinct items."""
    count = np.bincount(column, minlength=items.shape[0])
    item = tf.constant(column, tf.int32)
    p = tf.constant(p, tf.float32)
    log_weight = column_log_weight(tf.constant(count), p, len(row) - 1, config.correction)
    weight = np.ones(len(row)) if weight is None else weight
    none = tf.zeros([queries.shape[0], 0], tf.int32)
    weight = tf.constant(weight, tf.float32)
    total = RetrievalTask(config, items.shape[0], NegativesConfig())(
        queries,
        tf.gather(items, item),
        Targets(tf.constant(row), item, weight, tf.gather(p, item), {}, none),
        Columns(tf.range(items.shape[0]), log_weight, tf.convert_to_tensor(items)),
        known=own,
    )
    return total / len(row)


def loss_of(scores, row, column, count, probability, correction, own=None):
    """Each example's loss; the queries are rows of scores, and items axes."""
    assert np.bincount(column, minlength=len(count)).tolist() == list(count)
    config = TaskConfig(
        temperature=1.0, correction=correction, mask_known_positives=own is not None
    )
    queries, items = tf.constant(scores, tf.float32), np.eye(len(count), dtype="f4")
    own = own if own is None else tf.constant(own)
    return [
        float(in_batch(config, queries, items, row, column, probability, own, weight))
        for weight in len(row) * np.eye(len(row))
    ]
