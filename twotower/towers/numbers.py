"""Features of numbers: a number, a time, and a precomputed vector. They have no vocabulary."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from twotower.tf import tf
from twotower.towers.features import Feature, Input, embedding_table


@tf.keras.saving.register_keras_serializable("twotower")
class Number(Feature):
    """A number as a piecewise linear code (Gorishniy et al., NeurIPS 2022, equation 1).

    With quantiles b_0 < ... < b_T of the training values, component t is
    clip((x - b_{t-1}) / (b_t - b_{t-1}), 0, 1): 1 for bins below x, 0 for bins above x, and a
    fraction for the bin of x. Unlike in the paper, the first and the last bin are clipped, too.
    Infinite values lie before the first bin or after the last. One more
    component is a flag for a missing value. There are no weights. A heavy tail needs no logarithm,
    because all bins hold the same number of values.

    A missing value (NaN) sets the flag to 1 and all other components to 0. If no training value is
    missing, the weights of the flag would never be trained. A missing value is then read as the
    median of the training values, and the flag stays 0.

    Args:
        name: Name of the input, `[batch_size]` float32.
        quantiles: b_0 to b_T, two or more.
        default: The value that a missing one is read as; None for zeros and the flag.

    Raises:
        ValueError: Quantiles that do not ascend, or that float32 cannot tell apart.

    >>> feature = Number("year", [1990.0, 2000.0, 2010.0])
    >>> feature({"year": tf.constant([2005.0, np.nan])}).numpy().tolist()
    [[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """

    def __init__(self, name: str, quantiles: Sequence[float], default: float | None = None) -> None:
        super().__init__(name=name)
        self.quantiles = tuple(float(q) for q in quantiles)  # Keras would wrap a list
        self.default = default
        with np.errstate(over="ignore"):
            # As float32, like the input.
            seen = np.asarray(self.quantiles, np.float32).astype(np.float64)
        if len(seen) < 2 or not np.isfinite(seen).all() or (np.diff(seen) <= 0).any():
            raise ValueError(
                f"{name}: a number needs two or more quantiles that are finite and ascending in "
                f"float32; got {list(self.quantiles)}. Is the column constant? Then leave the "
                "feature out. If float32 cannot tell its values apart (whole numbers past 2**24, "
                "such as times in seconds), subtract its least value or take a larger unit."
            )

    @classmethod
    def fit(cls, name: str, values: np.ndarray, num_bins: int = 16) -> "Number":
        """A feature with the quantiles of the training values, without missing and infinite ones.

        Args:
            name: Name of the column.
            values: `[num_values]` numbers, NaN for a missing one.
            num_bins: Number of bins; equal quantiles are merged.

        Raises:
            ValueError: No value is known, or float32 cannot tell two of them apart.
        """
        with np.errstate(over="ignore"):
            seen = np.asarray(values, np.float32).astype(np.float64)
        known = seen[np.isfinite(seen)]
        if len(known) == 0:
            raise ValueError(f"{name}: no value is known in the training rows.")
        quantiles = np.quantile(known, np.linspace(0, 1, num_bins + 1)).astype(np.float32)
        default = None if np.isnan(seen).any() else float(np.median(known))
        return cls(name, np.unique(quantiles), default)

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "float32")]

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        # In float64, which holds every difference of two float32; the input itself is float32.
        x = tf.cast(tf.cast(encoded[self.name], tf.float32), tf.float64)[:, None]
        if self.default is not None:
            x = tf.where(tf.math.is_nan(x), tf.constant(self.default, tf.float64), x)
        bounds = np.asarray(self.quantiles, np.float32).astype(np.float64)
        missing = tf.math.is_nan(x)  # [batch_size, 1]
        code = tf.clip_by_value((x - bounds[:-1]) / np.diff(bounds), 0.0, 1.0)
        code = tf.where(missing, tf.zeros_like(code), code)  # [batch_size, num_bins]
        return tf.cast(tf.concat([code, tf.cast(missing, tf.float64)], 1), tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "quantiles": self.quantiles, "default": self.default}


@tf.keras.saving.register_keras_serializable("twotower")
class Clock(Feature):
    """Hour of the day and day of the week of a time, each as an embedding, one after the other.

    Args:
        name: Name of the input, `[batch_size]` int64 seconds since 1970 (UTC). -1 is an unknown
            time, which has a vector in both tables.
        dim: Length of each of the two vectors.

    >>> Clock("time", dim=3)({"time": tf.constant([0, -1], tf.int64)}).shape.as_list()
    [2, 6]
    """

    def __init__(self, name: str, dim: int = 16) -> None:
        super().__init__(name=name)
        self.dim = dim
        self.hour = embedding_table(25, dim, at_zero=(24,))
        self.weekday = embedding_table(8, dim, at_zero=(7,))

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "int64")]

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        time = tf.cast(encoded[self.name], tf.int64)  # [batch_size]
        no_hour, no_day = tf.constant(24, tf.int64), tf.constant(7, tf.int64)
        hour = tf.where(time < 0, no_hour, time // 3600 % 24)
        weekday = tf.where(time < 0, no_day, (time // 86400 + 3) % 7)  # 1970-01-01 was a Thursday
        return tf.concat([self.hour(hour), self.weekday(weekday)], 1)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim}


@tf.keras.saving.register_keras_serializable("twotower")
class Vector(Feature):
    """A precomputed vector of fixed size, such as an embedding of an item's sound or image.

    A vector with a NaN or infinite component is missing. It becomes zeros, and a flag after the
    vector becomes 1. If no vector of the training rows is missing, the weights of the flag would
    never be trained. A missing vector is then read as the mean of the training vectors.

    Args:
        name: Name of the input, `[batch_size, size]` float32.
        size: Number of components.
        default: `size` numbers that a missing vector is read as; None for zeros and the flag.

    >>> feature = Vector("sound", size=2)
    >>> feature({"sound": tf.constant([[0.5, 2.0], [np.nan, 1.0]])}).numpy().tolist()
    [[0.5, 2.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def __init__(self, name: str, size: int, default: Sequence[float] | None = None) -> None:
        super().__init__(name=name)
        self.size, self.default = size, None if default is None else tuple(map(float, default))

    @classmethod
    def fit(cls, name: str, values: Iterable[np.ndarray]) -> "Vector":
        """A feature for vectors of the length of the training rows' `values`, `[size]` each.

        Raises:
            ValueError: Vectors of different lengths, or no vector without NaN.
        """
        try:
            vectors = np.stack([np.asarray(value, np.float32) for value in values])
        except ValueError:
            vectors = np.empty(0)
        if vectors.ndim != 2 or not vectors.size:
            raise ValueError(f"{name}: expected vectors of numbers, all of one length.")
        known = np.isfinite(vectors).all(1)
        if not known.any():
            raise ValueError(f"{name}: no value is known in the training rows.")
        return cls(name, vectors.shape[1], vectors.mean(0, np.float64) if known.all() else None)

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "float32", (self.size,))]

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        vector = tf.ensure_shape(tf.cast(encoded[self.name], tf.float32), [None, self.size])
        missing = ~tf.reduce_all(tf.math.is_finite(vector), 1, keepdims=True)
        default = np.zeros(self.size) if self.default is None else self.default
        vector = tf.where(missing, tf.constant(default, tf.float32), vector)
        flag = missing if self.default is None else tf.zeros_like(missing)
        return tf.concat([vector, tf.cast(flag, tf.float32)], 1)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "size": self.size, "default": self.default}
