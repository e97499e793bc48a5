"""Declared features as Keras layers: raw strings and numbers in, vectors out, all in the graph.

A feature works in two steps, so that training does the first one only once:

    raw [batch_size, ...]  -- encode -->  integers  -- call -->  [batch_size, size]
    (strings, numbers)        lookup      or floats    embed     (what the tower concatenates)

`encode` has no weights, and the input pipeline runs it over whole tables before training. An
exported tower does both steps, so it takes raw values. `fit` makes a feature from the training
rows; what it learns from them (vocabulary, quantiles) is part of the feature's config.

A value may be missing, in training or in a request (`Input.missing`). If training has missing
values, the weights for them are trained. If it has none, those weights stay as they were
initialised, and a missing value of a request must not read them. In that case an embedding's row
for missing or unknown values is zero, a missing number reads as the median, and a missing vector as
the mean.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from twotower.tf import tf
from twotower.towers.words import words

# Index of padding and of an unknown token in a sequence of tokens.
PAD, UNKNOWN = 0, 1


@dataclasses.dataclass(frozen=True)
class Input:
    """One raw input of a tower, as in a SavedModel's signature and in the manifest.

    Attributes:
        name: Name of the input.
        dtype: `string`, `float32` or `int64`.
        shape: Shape without the batch. None is a dimension of any length, padded on the right.

    >>> Input("time", "int64").missing, Input("history", "string", (None,)).spec.shape.as_list()
    (-1, [None, None])
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] = ()

    @property
    def missing(self) -> str | float | int:
        """The value that means "not known": "" for strings, NaN for floats, -1 for integers."""
        return {"string": "", "float32": float("nan"), "int64": -1}[self.dtype]

    @property
    def spec(self) -> tf.TensorSpec:
        """The type of the input with its batch dimension."""
        return tf.TensorSpec([None, *self.shape], self.dtype, self.name)


def require_float32() -> None:
    """Raises ValueError under a Keras policy of another precision than float32.

    Times, counts and the weights of negatives do not fit into 16 bits. On CPUs bfloat16 is also
    slower.
    """
    policy = tf.keras.mixed_precision.global_policy()
    if (policy.compute_dtype, policy.variable_dtype) != ("float32", "float32"):
        raise ValueError(
            f"towers train in float32; the Keras policy is {policy.name!r}. Call "
            "tf.keras.mixed_precision.set_global_policy('float32') first."
        )


def embedding_table(
    rows: int, dim: int, at_zero: tuple[int, ...] = ()
) -> tf.keras.layers.Embedding:
    """An embedding whose initial components are normal with standard deviation 1 / sqrt(dim).

    Args:
        rows: Number of vectors.
        dim: Their length.
        at_zero: Rows that are initialised to zero, because no training value uses them.
    """
    normal = tf.keras.initializers.RandomNormal(stddev=dim**-0.5)

    def start(shape, dtype=None, **kwargs: Any):
        keep = 1 - tf.reduce_sum(tf.one_hot(at_zero, rows, dtype=dtype), 0)
        return normal(shape, dtype, **kwargs) * keep[:, None]

    return tf.keras.layers.Embedding(rows, dim, embeddings_initializer=start)


class Feature(tf.keras.layers.Layer):
    """Base of all features; `name` is both the column that it reads and the tower's input.

    Subclasses define `inputs`, `call`, `get_config` and, if they take strings, `index`.

    Raises:
        ValueError: Another precision than float32.
    """

    def __init__(self, name: str) -> None:
        require_float32()
        super().__init__(name=name)

    # Whether the inputs are a sequence of events, of which `at` encodes many prefixes at once.
    is_sequence = False

    @property
    def inputs(self) -> list[Input]:
        """The raw inputs, in a fixed order."""
        raise NotImplementedError

    def index(self, values: tf.Tensor) -> tf.Tensor:
        """Strings of the input `name` to dense integers; numbers stay as they are."""
        return values

    def encode(self, raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Raw inputs to dense integers or floats under the same names, without weights or gradient.

        Inputs that are encoded already stay as they are, so a batch may mix both.
        """
        encoded = {spec.name: raw[spec.name] for spec in self.inputs}
        if tf.convert_to_tensor(encoded[self.name]).dtype == tf.string:
            encoded[self.name] = self.index(encoded[self.name])
        return encoded

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Encoded inputs to `[batch_size, size]` float32."""
        raise NotImplementedError

    def at(
        self, encoded: dict[str, tf.Tensor], position: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """The feature of many queries that share a few sequences, `[num_queries, size]`.

        Args:
            encoded: Encoded inputs. Histories have a row for each sequence, all others a row for
                each query.
            position: `[num_queries, 2]` int32, the sequence of each query, and how many of its
                events the query reads.
            training: Whether this is a training step.
        """
        return self(encoded, training=training)


@tf.keras.saving.register_keras_serializable("twotower")
class Id(Feature):
    """A categorical id through an embedding table; unknown and missing ids share row 0.

    In training a share of the ids is replaced by "unknown". Row 0 then learns to represent a new
    id, and the tower learns to use the other features of an item or user. (This is the idea of
    DropoutNet, Volkovs et al., NeurIPS 2017, applied to the id alone.)

    Args:
        name: Name of the input, `[batch_size]` strings.
        vocabulary: Ids that have a vector each.
        dim: Length of the vectors.
        unknown_rate: Share of ids that are replaced in training, in [0, 1).

    Raises:
        ValueError: An unknown_rate out of bounds.

    >>> feature = Id("country", ["ch", "fr"], dim=2)
    >>> encoded = feature.encode({"country": tf.constant(["fr", "it"])})
    >>> encoded["country"].numpy().tolist(), feature(encoded).shape.as_list()
    ([2, 0], [2, 2])
    """

    def __init__(
        self, name: str, vocabulary: Sequence[str], dim: int = 64, unknown_rate: float = 0.0
    ) -> None:
        super().__init__(name=name)
        if not 0.0 <= unknown_rate < 1.0:
            raise ValueError(f"{name}: unknown_rate must be in [0, 1); got {unknown_rate}.")
        self.vocabulary, self.dim, self.unknown_rate = tuple(vocabulary), dim, unknown_rate
        self.lookup = tf.keras.layers.StringLookup(vocabulary=list(self.vocabulary) or [" "])
        unknown = () if unknown_rate else (0,)
        self.table = embedding_table(len(self.vocabulary) + 1, dim, at_zero=unknown)

    @classmethod
    def fit(cls, name: str, values: Iterable[str], **kwargs: Any) -> "Id":
        """A feature that knows the distinct `values` of the training rows."""
        return cls(name, sorted(set(values) - {""}), **kwargs)

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "string")]

    def index(self, values: tf.Tensor) -> tf.Tensor:
        return tf.cast(self.lookup(values), tf.int32)

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        index = encoded[self.name]  # [batch_size]
        if training and self.unknown_rate > 0:
            index = tf.where(tf.random.uniform(tf.shape(index)) < self.unknown_rate, 0, index)
        return self.table(index)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "vocabulary": self.vocabulary,
            "dim": self.dim,
            "unknown_rate": self.unknown_rate,
        }


@tf.keras.saving.register_keras_serializable("twotower")
class Tags(Feature):
    """A set of strings, such as genres: the mean of their embeddings, zeros for an empty set.

    The raw input is `[batch_size, n]` strings, padded with "". The encoded input has indices in
    their place: 0 for padding, 1 for an unknown tag.

    Args:
        name: Name of the input.
        vocabulary: Tags that have a vector each.
        dim: Length of the vectors.
        has_rare: Whether training has tags outside the vocabulary, whose shared vector is then
            trained.

    >>> feature = Tags("genres", ["comedy", "drama"], dim=2)
    >>> raw = {"genres": tf.constant([["drama", ""], ["noir", "comedy"]])}
    >>> feature.encode(raw)["genres"].numpy().tolist()
    [[3, 0], [1, 2]]
    """

    shape: tuple[int | None, ...] = (None,)

    def __init__(
        self, name: str, vocabulary: Sequence[str], dim: int = 32, has_rare: bool = False
    ) -> None:
        super().__init__(name=name)
        self.vocabulary, self.dim, self.has_rare = tuple(vocabulary), dim, has_rare
        self.lookup = tf.keras.layers.StringLookup(
            vocabulary=list(self.vocabulary) or [" "], mask_token=""
        )
        unknown = () if has_rare else (UNKNOWN,)
        self.table = embedding_table(len(self.vocabulary) + 2, dim, at_zero=unknown)

    @classmethod
    def fit(cls, name: str, values: Iterable, min_count: int = 1, **kwargs: Any) -> "Tags":
        """A feature whose vocabulary is the tags that occur in at least `min_count` of the
        `values`."""
        counts = Counter(tag for tags in cls.tags(values) for tag in set(tags) - {""})
        kept = sorted(tag for tag, count in counts.items() if count >= min_count)
        return cls(name, kept, has_rare=len(kept) < len(counts), **kwargs)

    @staticmethod
    def tags(values: Iterable) -> Iterable[Sequence[str]]:
        """The tags of each raw value."""
        return values

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "string", self.shape)]

    def index(self, values: tf.Tensor) -> tf.Tensor:
        return tf.cast(self.lookup(values), tf.int32)

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        index = encoded[self.name]  # [batch_size, n]
        # A product with a sparse matrix of counts: most of `index` is padding, and the gradient of
        # the table is then dense, while that of a lookup would have a row for each entry of
        # `index`.
        known = index != PAD
        at = tf.where(known)
        tag = tf.cast(tf.gather_nd(index, at), tf.int64)
        if not self.table.built:
            self.table.build(None)
        shape = tf.cast([tf.shape(index)[0], self.table.input_dim], tf.int64)
        counts = tf.SparseTensor(tf.stack([at[:, 0], tag], 1), tf.ones_like(tag, tf.float32), shape)
        total = tf.sparse.sparse_dense_matmul(counts, self.table.embeddings)
        number = tf.reduce_sum(tf.cast(known, tf.float32), 1, keepdims=True)
        return tf.math.divide_no_nan(total, number)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "vocabulary": self.vocabulary,
            "dim": self.dim,
            "has_rare": self.has_rare,
        }


@tf.keras.saving.register_keras_serializable("twotower")
class Tokens(Tags):
    """A text, such as a title: the mean of its words' embeddings.

    The raw input is `[batch_size]` strings; `words.py` defines a word. (A whole title as one string
    of the vocabulary would be no more than a second item id.)

    >>> feature = Tokens.fit("title", ["Toy Story", "Toy Soldiers"], min_count=2, dim=2)
    >>> feature.vocabulary
    ('toy',)
    """

    shape = ()

    @staticmethod
    def tags(values: Iterable[str]) -> Iterable[Sequence[str]]:
        found = words(tf.constant(list(values), tf.string))
        return ([word.decode() for word in row] for row in found.to_list())

    def index(self, values: tf.Tensor) -> tf.Tensor:
        return super().index(words(values).to_tensor(""))  # [batch_size, n]


@tf.keras.saving.register_keras_serializable("twotower")
class Number(Feature):
    """A number as a piecewise linear code (Gorishniy et al., NeurIPS 2022, equation 1).

    With quantiles b_0 < ... < b_T of the training values, component t is
    clip((x - b_{t-1}) / (b_t - b_{t-1}), 0, 1): 1 for bins below x, 0 for bins above x, and a
    fraction for the bin of x. Infinite values lie before the first bin or after the last. One more
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

    A vector with a NaN or infinite component is missing. It becomes zeros, and a flag behind the
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
