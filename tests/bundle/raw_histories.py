"""Histories as a service sends them: ids, times and ratings, and the time of the request."""

import numpy as np

from twotower.tf import tf

NAN = float("nan")


def raw_history(*rows, request=10_000):
    """Of histories of one length; known event j comes at 100 * j seconds and has j stars."""
    known = np.array(rows, object).reshape(len(rows), -1) != ""
    number = np.cumsum(known, 1)
    return {
        "history": tf.reshape(tf.constant(rows, tf.string), known.shape),
        "history_time": tf.constant(np.where(known, 100 * number, -1), tf.int64),
        "history_rating": tf.constant(np.where(known, number, NAN), tf.float32),
        "time": tf.fill([len(rows)], tf.constant(request, tf.int64)),
    }
