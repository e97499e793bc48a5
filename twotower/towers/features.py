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

from twotower.tf import tf
from twotower.towers.words import words

# Index of padding and of an unknown token in a sequence of tokens.
PAD, UNKNOWN = 0, 1
# Words of a text that are read. All texts are padded to the longest one: without a limit, a text of
# a million words would make the text of every item that long.
MOST_WORDS = 512


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
        """Strings of the input `name`, `[batch_size, ...]`, to dense integers; numbers stay as they
        are. The result has one more dimension if a string is split into tokens."""
        return values

    def encode(self, raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Raw inputs to dense integers or floats, both name -> `[batch_size, ...]`.

        No weights are used, and there is no gradient. Inputs that are encoded already stay as they
        are, so a batch may mix both.
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


class StringFeature(Feature):
    """Base of the features whose strings have a vocabulary: `Id`, `Tags` and the histories.

    Args:
        name: Name of the input.
        vocabulary: Strings, each of which gets a code. All others are coded as unknown.
        mask_token: The string for padding, whose code is 0; None for no padding.
    """

    def __init__(self, name: str, vocabulary: Sequence[str], mask_token: str | None = None) -> None:
        super().__init__(name=name)
        self.vocabulary = tuple(vocabulary)
        # StringLookup refuses an empty vocabulary.
        self.lookup = tf.keras.layers.StringLookup(
            vocabulary=list(self.vocabulary) or [" "], mask_token=mask_token
        )

    def index(self, values: tf.Tensor) -> tf.Tensor:
        return tf.cast(self.lookup(values), tf.int32)


@tf.keras.saving.register_keras_serializable("twotower")
class Id(StringFeature):
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
        super().__init__(name, vocabulary)
        if not 0.0 <= unknown_rate < 1.0:
            raise ValueError(f"{name}: unknown_rate must be in [0, 1); got {unknown_rate}.")
        self.dim, self.unknown_rate = dim, unknown_rate
        unknown = () if unknown_rate else (0,)
        self.table = embedding_table(len(self.vocabulary) + 1, dim, at_zero=unknown)

    @classmethod
    def fit(cls, name: str, values: Iterable[str], **kwargs: Any) -> "Id":
        """A feature that knows the distinct `values` of the training rows."""
        return cls(name, sorted(set(values) - {""}), **kwargs)

    @property
    def inputs(self) -> list[Input]:
        return [Input(self.name, "string")]

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
class Tags(StringFeature):
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
        super().__init__(name, vocabulary, mask_token="")
        self.dim, self.has_rare = dim, has_rare
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

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        index = encoded[self.name]  # [batch_size, n]
        # A product with a sparse matrix of counts: most of `index` is padding, and the gradient of
        # the table is then dense, while that of a lookup would have a row for each entry of
        # `index`.
        known = index != PAD
        cells = tf.where(known)
        tag = tf.cast(tf.gather_nd(index, cells), tf.int64)
        if not self.table.built:
            self.table.build(None)
        shape = tf.cast([tf.shape(index)[0], self.table.input_dim], tf.int64)
        counts = tf.SparseTensor(
            tf.stack([cells[:, 0], tag], 1), tf.ones_like(tag, tf.float32), shape
        )
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

    The raw input is `[batch_size]` strings; `data/words.py` says what a word is. Only the first
    `MOST_WORDS` words count. (A whole title as one entry of the vocabulary would only be a second
    item id.)

    >>> feature = Tokens.fit("title", ["Toy Story", "Toy Soldiers"], min_count=2, dim=2)
    >>> feature.vocabulary
    ('toy',)
    """

    shape = ()

    @staticmethod
    def tags(values: Iterable[str]) -> Iterable[Sequence[str]]:
        found = words(tf.constant(list(values), tf.string))
        return ([word.decode() for word in row[:MOST_WORDS]] for row in found.to_list())

    def index(self, values: tf.Tensor) -> tf.Tensor:
        found = words(values)[:, :MOST_WORDS]
        return super().index(found.to_tensor(""))  # [batch_size, n]
