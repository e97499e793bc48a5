"""Declared features as Keras layers: raw strings and numbers in, vectors out, all in the graph.

A feature works in two steps, so that training pays for the first one only once:

    raw [batch_size, ...]  -- encode -->  integers  -- call -->  [batch_size, size]
    (strings, numbers)        lookup      or floats    embed     (what the tower concatenates)

`encode` has no weights; the input pipeline runs it over whole tables before training. An exported
tower does both steps, so that it takes raw values. What a feature knows of the data (vocabulary,
quantiles) comes from training rows, through `fit`, and stands in its config.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from twotower import require_legacy_keras

require_legacy_keras()
import tensorflow as tf  # noqa: E402

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


def embedding_table(rows: int, dim: int) -> tf.keras.layers.Embedding:
    """An embedding with a start that suits wide towers (normal, deviation 1 / sqrt(dim))."""
    return tf.keras.layers.Embedding(
        rows, dim, embeddings_initializer=tf.keras.initializers.RandomNormal(stddev=dim**-0.5)
    )


class Feature(tf.keras.layers.Layer):
    """Base of all features; `name` is the column it reads and the tower's input.

    Subclasses define `inputs`, `call`, `get_config` and, where they take strings, `index`.
    """

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
        self.table = embedding_table(len(self.vocabulary) + 1, dim)

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


class Tags(Feature):
    """A set of strings, such as genres: the mean of their embeddings, zeros for an empty set.

    Raw input is `[batch_size, n]`, padded with "". Encoded is the same with indices; 0 is padding,
    1 an unknown tag.
    """

    shape: tuple[int | None, ...] = (None,)

    def __init__(self, name: str, vocabulary: Sequence[str], dim: int = 32) -> None:
        super().__init__(name=name)
        self.vocabulary, self.dim = tuple(vocabulary), dim
        self.lookup = tf.keras.layers.StringLookup(
            vocabulary=list(self.vocabulary) or [" "], mask_token=""
        )
        self.table = embedding_table(len(self.vocabulary) + 2, dim)

    @classmethod
    def fit(cls, name: str, values: Iterable, min_count: int = 1, **kwargs) -> "Tags":
        """A feature that knows the tags which stand in at least `min_count` of the `values`."""
        counts = Counter(tag for tags in cls.tags(values) for tag in set(tags))
        kept = (tag for tag, count in counts.items() if count >= min_count and tag)
        return cls(name, sorted(kept), **kwargs)

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
        return {"name": self.name, "vocabulary": self.vocabulary, "dim": self.dim}


class Tokens(Tags):
    """A text, such as a title: the mean of its words' embeddings.

    Raw input is `[batch_size]`. The text is lowered, apostrophes go, and every other run of
    characters that are neither letters nor digits separates words. (A title looked up as one whole
    string would be a second item id.)
    """

    shape = ()

    @staticmethod
    def tags(values):
        words = Tokens.words(tf.constant(list(values), tf.string))
        return ([word.decode() for word in row] for row in words.to_list())

    @staticmethod
    def words(text: tf.Tensor) -> tf.RaggedTensor:
        """The words of each text: `[batch_size]` to `[batch_size, (n)]`."""
        text = tf.strings.regex_replace(tf.strings.lower(text, encoding="utf-8"), "'", "")
        return tf.strings.split(tf.strings.regex_replace(text, r"[^\p{L}\p{N}]+", " "))

    def index(self, values):
        words = self.words(values).to_tensor("")  # [batch_size, n]
        return tf.cast(self.lookup(words), tf.int32)


class Number(Feature):
    """A number as a piecewise linear code (Gorishniy et al., NeurIPS 2022, equation 1).

    With quantiles b_0 < ... < b_T of the training values, component t is
    clip((x - b_{t-1}) / (b_t - b_{t-1}), 0, 1): all ones below x, all zeros above, a fraction in
    the bin of x. One more component says that the value is missing (NaN). No weights; a heavy tail
    needs no logarithm, because bins hold equal numbers of values.
    """

    def __init__(self, name: str, quantiles: Sequence[float]) -> None:
        super().__init__(name=name)
        self.quantiles = tuple(float(q) for q in quantiles)  # of a list Keras makes its own
        if len(self.quantiles) < 2 or (np.diff(self.quantiles) <= 0).any():
            raise ValueError(
                f"{name}: a number needs two or more ascending quantiles; got "
                f"{list(self.quantiles)}. Is the column constant? Then leave the feature out."
            )

    @classmethod
    def fit(cls, name: str, values: np.ndarray, num_bins: int = 16) -> "Number":
        """Quantiles of the training values; NaN do not count."""
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        if len(values) == 0:
            raise ValueError(f"{name}: no value is known in the training rows.")
        return cls(name, np.unique(np.quantile(values, np.linspace(0, 1, num_bins + 1))))

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "float32")]

    def call(self, encoded, training=False):
        x = encoded[self.name][:, None]  # [batch_size, 1]
        low = tf.constant(self.quantiles[:-1], tf.float32)
        high = tf.constant(self.quantiles[1:], tf.float32)
        missing = tf.math.is_nan(x)
        code = tf.clip_by_value((x - low) / (high - low), 0.0, 1.0)  # [batch_size, num_bins]
        return tf.concat(
            [tf.where(missing, tf.zeros_like(code), code), tf.cast(missing, tf.float32)], 1
        )

    def get_config(self):
        return {"name": self.name, "quantiles": self.quantiles}


class Clock(Feature):
    """Hour of the day and day of the week of a time in seconds since 1970 (UTC), each embedded.

    -1 means that the time is not told; both get a row of their own for it.
    """

    def __init__(self, name: str, dim: int = 16) -> None:
        super().__init__(name=name)
        self.dim = dim
        self.hour = embedding_table(25, dim)
        self.weekday = embedding_table(8, dim)

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


class Vector(Feature):
    """A precomputed vector of fixed size, such as an embedding of an item's sound or image.

    NaN in any component means that there is none; then zeros and a flag.
    """

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name=name)
        self.size = size

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "float32", (self.size,))]

    def call(self, encoded, training=False):
        vector = tf.ensure_shape(encoded[self.name], [None, self.size])
        missing = tf.reduce_any(tf.math.is_nan(vector), 1, keepdims=True)
        vector = tf.where(missing, tf.zeros_like(vector), vector)
        return tf.concat([vector, tf.cast(missing, tf.float32)], 1)

    def get_config(self):
        return {"name": self.name, "size": self.size}
