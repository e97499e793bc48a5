"""Histories of twelve items as inputs, encoders of short windows with weights at random, and their
answers."""

import numpy as np

from twotower.tf import tf
from twotower.towers.history.config import (
    AttentionConfig,
    GRUConfig,
    HSTUConfig,
    MaskedTransformerConfig,
    MeanConfig,
    RecencyConfig,
    TransformerConfig,
)
from twotower.towers.query import HISTORIES

ITEMS = [f"i{number}" for number in range(12)]
NAN = float("nan")
ALL_INPUTS = {"gaps": True, "ratings": True, "request_time": True}
SHORT = {"dim": 8, "dropout": 0.0, "length": 6, "stride": 2}
ENCODERS = {
    "mean": MeanConfig(dim=8, dropout=0.0),
    "mean, ratings": MeanConfig(dim=8, dropout=0.0, ratings=True),
    "recency": RecencyConfig(**SHORT, half_life=3),
    "attention": AttentionConfig(**SHORT, request_time=True),
    "gru": GRUConfig(**SHORT, layers=2),
    "gru, all inputs": GRUConfig(**SHORT, **ALL_INPUTS, layers=1),
    "transformer": TransformerConfig(**SHORT),
    "transformer, relative": TransformerConfig(**SHORT, positions="relative"),
    "transformer, all inputs": TransformerConfig(**SHORT, **ALL_INPUTS, time_bias=True),
    "hstu": HSTUConfig(**SHORT),
    "hstu, all inputs": HSTUConfig(**SHORT, **ALL_INPUTS),
    "masked": MaskedTransformerConfig(**SHORT),
    "masked, all inputs": MaskedTransformerConfig(**SHORT, **ALL_INPUTS, time_bias=True),
}


def made(config):
    return HISTORIES[config.encoder]("past", ITEMS, config)


def encoder(name, seed=0):
    """With weights at random, biases and tables that start at zero too."""
    tf.keras.utils.set_random_seed(seed)
    feature = made(ENCODERS[name])
    feature(feature.encode(raw([[0, 1]])))
    rng = np.random.default_rng(seed)
    for weight in feature.trainable_weights:
        if len(weight.shape):
            weight.assign(rng.normal(0, 0.4, weight.shape))
    return feature


def raw(rows, request=10_000, times=None, width=None):
    """Inputs of histories of item numbers; item 99 is unknown. Event j comes at (j + 1)^3 s."""
    width = max(map(len, rows)) if width is None else width
    ids = [[f"i{n}" for n in row] + [""] * (width - len(row)) for row in rows]
    seconds = [[(j + 1) ** 3 if j < len(row) else -1 for j in range(width)] for row in rows]
    stars = [[0.5 + 0.5 * (n % 9) if n % 4 else NAN for n in row] for row in rows]
    stars = [row + [NAN] * (width - len(row)) for row in stars]
    if times is not None:
        seconds = times
    return {
        "past": tf.reshape(tf.constant(ids, tf.string), [len(rows), width]),
        "past_time": tf.reshape(tf.constant(seconds, tf.int64), [len(rows), width]),
        "past_rating": tf.reshape(tf.constant(stars, tf.float32), [len(rows), width]),
        "time": tf.fill([len(rows)], tf.constant(request, tf.int64)),
    }


def answers(feature, *args, **kwargs):
    return feature(feature.encode(raw(*args, **kwargs))).numpy()
