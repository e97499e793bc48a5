"""Declared features as Keras layers: raw strings and numbers in, vectors out, all in the graph.

A feature works in two steps, so that training pays for the first one only once:

    raw [batch_size, ...]  -- encode -->  integers  -- call -->  [batch_size, size]
    (strings, numbers)        lookup      or floats    embed     (what the tower concatenates)

`encode` has no weights; the input pipeline runs it over whole tables before training. An exported
tower does both steps, so that it takes raw values. What a feature knows of the data (vocabulary,
quantiles) comes from training rows, through `fit`, and stands in its config.

A value may be missing, in training or in a request; `Input.missing` says how that is written. If
training has missing values, the weights that stand for them are trained. If it has none, the first
missing value of a request must not read random weights that were never trained: an embedding's row
for missing or unknown values is zero then, a number reads as the median, a vector as the mean.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from twotower.tf import tf
from twotower.towers.words import words

# Index of padding and of an unknown token in a sequence of tokens.
PAD, UNKNOWN = 0, 1


@dataclasses.dataclass(frozen=True)
class Input:
    """One raw input of a tower, as it stands in a SavedModel's signature and in the manifest.

    Attributes:
        name: Name of the input.
        dtype: `string`, `float32` or `int64`.
        shape: Shape without the batch; None is a dimension of any length, padded on the right.
        missing: The value that says "not known": "" for strings, NaN for floats, -1 for integers.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] = ()

    @property
    def missing(self) -> str | float | int:
        return {"string": "", "float32": float("nan"), "int64": -1}[self.dtype]

    @property
    def spec(self) -> tf.TensorSpec:
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
    """An embedding with a start that suits wide towers (normal, deviation 1 / sqrt(dim)).

    Args:
        rows: Number of vectors.
        dim: Their length.
        at_zero: Rows that start at zero, because no training value uses them.
    """
    normal = tf.keras.initializers.RandomNormal(stddev=dim**-0.5)

    def start(shape, dtype=None, **kwargs):
        keep = 1 - tf.reduce_sum(tf.one_hot(at_zero, rows, dtype=dtype), 0)
        return normal(shape, dtype, **kwargs) * keep[:, None]

    return tf.keras.layers.Embedding(rows, dim, embeddings_initializer=start)


class Feature(tf.keras.layers.Layer):
    """Base of all features; `name` is the column it reads and the tower's input.

    Subclasses define `inputs`, `call`, `get_config` and, where they take strings, `index`.

    Raises:
        ValueError: Another precision than float32.
    """

    def __init__(self, name: str) -> None:
        require_float32()
        super().__init__(name=name)

    # Whether its inputs are a sequence, whose prefixes `at` can read all at once.
    is_sequence = False

    @property
    def inputs(self) -> list[Input]:
        """The raw inputs, in a fixed order."""
        raise NotImplementedError

    def index(self, values: tf.Tensor) -> tf.Tensor:
        """Strings of the input `name` to dense integers; whatever is a number already stays."""
        return values

    def encode(self, raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Raw inputs to dense integers or floats under the same names. No weights, no gradient.

        What is encoded already passes through, so that a batch may mix both.
        """
        encoded = {spec.name: raw[spec.name] for spec in self.inputs}
        if tf.convert_to_tensor(encoded[self.name]).dtype == tf.string:
            encoded[self.name] = self.index(encoded[self.name])
        return encoded

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Encoded inputs to `[batch_size, size]` float32."""
        raise NotImplementedError

    def at(
        self, encoded: dict[str, tf.Tensor], place: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """The feature of many queries of a few sequences, `[num_queries, size]`.

        Args:
            encoded: Encoded inputs; histories have a row a sequence, all else a row a query.
            place: `[num_queries, 2]` int32, each query's sequence and place in it.
            training: Whether this is a training step.
        """
        return self(encoded, training=training)


@tf.keras.saving.register_keras_serializable("twotower")
class Id(Feature):
    """A categorical id through an embedding table; unknown and missing ids share row 0.

    In training an id is replaced by "unknown" at `unknown_rate`, so that row 0 learns to stand for
    an id never met and the tower learns to place an item or user by its other features. (The same
    idea as DropoutNet, Volkovs et al., NeurIPS 2017, applied to the id alone.)
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
    def fit(cls, name: str, values: Iterable[str], **kwargs) -> "Id":
        """A feature that knows the distinct `values` of the training rows."""
        return cls(name, sorted(set(values) - {""}), **kwargs)

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "string")]

    def index(self, values):
        return tf.cast(self.lookup(values), tf.int32)

    def call(self, encoded, training=False):
        index = encoded[self.name]  # [batch_size]
        if training and self.unknown_rate > 0:
            index = tf.where(tf.random.uniform(tf.shape(index)) < self.unknown_rate, 0, index)
        return self.table(index)

    def get_config(self):
        return {
            "name": self.name,
            "vocabulary": self.vocabulary,
            "dim": self.dim,
            "unknown_rate": self.unknown_rate,
        }


@tf.keras.saving.register_keras_serializable("twotower")
class Tags(Feature):
    """A set of strings, such as genres: the mean of their embeddings, zeros for an empty set.

    Raw input is `[batch_size, n]`, padded with "". Encoded is the same with indices; 0 is padding,
    1 an unknown tag.

    Args:
        name: Name of the input.
        vocabulary: Tags that have a vector each.
        dim: Length of the vectors.
        has_rare: Whether training also has tags outside the vocabulary; their shared vector is
            trained then.
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
    def fit(cls, name: str, values: Iterable, min_count: int = 1, **kwargs) -> "Tags":
        """A feature that knows the tags which stand in at least `min_count` of the `values`."""
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

    def index(self, values):
        return tf.cast(self.lookup(values), tf.int32)

    def call(self, encoded, training=False):
        index = encoded[self.name]  # [batch_size, n]
        # A product with a sparse matrix of counts: most places are padding, and the table's
        # gradient comes out dense, where that of a lookup would be a row for each place.
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

    def get_config(self):
        return {
            "name": self.name,
            "vocabulary": self.vocabulary,
            "dim": self.dim,
            "has_rare": self.has_rare,
        }


@tf.keras.saving.register_keras_serializable("twotower")
class Tokens(Tags):
    """A text, such as a title: the mean of its words' embeddings.

    Raw input is `[batch_size]`; `words.py` says what a word is. (A title looked up as one whole
    string would be a second item id.)
    """

    shape = ()

    @staticmethod
    def tags(values):
        found = words(tf.constant(list(values), tf.string))
        return ([word.decode() for word in row] for row in found.to_list())

    def index(self, values):
        return super().index(words(values).to_tensor(""))  # [batch_size, n]


@tf.keras.saving.register_keras_serializable("twotower")
class Number(Feature):
    """A number as a piecewise linear code (Gorishniy et al., NeurIPS 2022, equation 1).

    With quantiles b_0 < ... < b_T of the training values, component t is
    clip((x - b_{t-1}) / (b_t - b_{t-1}), 0, 1): all ones below x, all zeros above, a fraction in
    the bin of x. Infinite values are past the last bin or before the first. One more component is a
    flag. No weights; a heavy tail needs no logarithm, because bins hold equal numbers of values.

    A missing value (NaN) sets the flag, and all other components to zero. If no training value is
    missing, the weights of the flag would never be trained: a missing value then reads as the
    median of the training values, and the flag stays 0.

    Args:
        name: Name of the input, float32.
        quantiles: b_0 to b_T, two or more.
        default: What a missing value reads as; None for zeros and the flag.

    Raises:
        ValueError: Quantiles that do not ascend, or that float32 cannot tell apart.
    """

    def __init__(self, name: str, quantiles: Sequence[float], default: float | None = None) -> None:
        super().__init__(name=name)
        self.quantiles = tuple(float(q) for q in quantiles)  # of a list Keras makes its own
        self.default = default
        with np.errstate(over="ignore"):
            # As the float32 input sees them.
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
        """Quantiles of the training values as float32; missing and infinite ones do not count.

        Args:
            name: Of the column.
            values: `[num_values]` numbers; NaN where there is none.
            num_bins: Number of bins; equal quantiles are merged.

        Raises:
            ValueError: No value, or not two that float32 can tell apart.
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

    def call(self, encoded, training=False):
        # In float64, which holds every difference of two float32; the input itself is float32.
        x = tf.cast(tf.cast(encoded[self.name], tf.float32), tf.float64)[:, None]
        if self.default is not None:
            x = tf.where(tf.math.is_nan(x), tf.constant(self.default, tf.float64), x)
        bounds = np.asarray(self.quantiles, np.float32).astype(np.float64)
        missing = tf.math.is_nan(x)  # [batch_size, 1]
        code = tf.clip_by_value((x - bounds[:-1]) / np.diff(bounds), 0.0, 1.0)
        code = tf.where(missing, tf.zeros_like(code), code)  # [batch_size, num_bins]
        return tf.cast(tf.concat([code, tf.cast(missing, tf.float64)], 1), tf.float32)

    def get_config(self):
        return {"name": self.name, "quantiles": self.quantiles, "default": self.default}


@tf.keras.saving.register_keras_serializable("twotower")
class Clock(Feature):
    """Hour of the day and day of the week of a time in seconds since 1970 (UTC), each embedded.

    -1 means that the time is not told; both get a row of their own for it.
    """

    def __init__(self, name: str, dim: int = 16) -> None:
        super().__init__(name=name)
        self.dim = dim
        self.hour = embedding_table(25, dim, at_zero=(24,))
        self.weekday = embedding_table(8, dim, at_zero=(7,))

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "int64")]

    def call(self, encoded, training=False):
        time = tf.cast(encoded[self.name], tf.int64)  # [batch_size]
        no_hour, no_day = tf.constant(24, tf.int64), tf.constant(7, tf.int64)
        hour = tf.where(time < 0, no_hour, time // 3600 % 24)
        weekday = tf.where(time < 0, no_day, (time // 86400 + 3) % 7)  # 1970-01-01 was a Thursday
        return tf.concat([self.hour(hour), self.weekday(weekday)], 1)

    def get_config(self):
        return {"name": self.name, "dim": self.dim}


@tf.keras.saving.register_keras_serializable("twotower")
class Vector(Feature):
    """A precomputed vector of fixed size, such as an embedding of an item's sound or image.

    A vector with a NaN or infinite component is missing: it becomes zeros and a flag. If no
    training row lacks its vector, the flag would never be trained: a missing vector reads as the
    mean then.

    Args:
        name: Name of the input, float32.
        size: Components.
        default: `size` numbers, what a missing vector reads as; None for zeros and the flag.
    """

    def __init__(self, name: str, size: int, default: Sequence[float] | None = None) -> None:
        super().__init__(name=name)
        self.size, self.default = size, None if default is None else tuple(map(float, default))

    @classmethod
    def fit(cls, name: str, values: Iterable[np.ndarray]) -> "Vector":
        """A feature of the size of the training rows' `values`, `[size]` each.

        Raises:
            ValueError: Vectors of several lengths, or not one without NaN.
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

    def call(self, encoded, training=False):
        vector = tf.ensure_shape(tf.cast(encoded[self.name], tf.float32), [None, self.size])
        missing = ~tf.reduce_all(tf.math.is_finite(vector), 1, keepdims=True)
        default = np.zeros(self.size) if self.default is None else self.default
        vector = tf.where(missing, tf.constant(default, tf.float32), vector)
        flag = missing if self.default is None else tf.zeros_like(missing)
        return tf.concat([vector, tf.cast(flag, tf.float32)], 1)

    def get_config(self):
        return {"name": self.name, "size": self.size, "default": self.default}
