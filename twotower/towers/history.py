"""What a user did before, as one vector: mean and attention pooling over past items."""

from collections.abc import Iterable, Sequence

from twotower import require_legacy_keras

require_legacy_keras()
import tensorflow as tf  # noqa: E402

from twotower.features import (  # noqa: E402
    PAD,
    UNKNOWN,
    Feature,
    Id,
    Input,
    embedding_table,
    masked_mean,
)

# Up to this many items, the mean is a product of a count matrix [batch_size, num_items] with the
# table: for histories of hundreds of events several times faster than gathering and scattering
# their vectors (a third of a training step on MovieLens 1M). Past it, the matrix is too wide.
COUNT_MATRIX_LIMIT = 20_000


class History(Feature):
    """Base of the history encoders: inputs and lookup of aligned sequences, oldest first.

    Inputs are `<name>` `[batch_size, n]` strings padded on the right with "", and as far as an
    encoder uses them `<name>_time` (int64 seconds, -1 for padding) and `<name>_rating` (float32,
    NaN where there is none), aligned with it. Items unknown to the vocabulary count as absent
    until the next training.

    Args:
        name: Name of the input.
        vocabulary: Ids of the items of the training rows.
        dim: Length of an item's vector here.
        dropout: Share of events that are left out in training, at random: the tower must not
            lean on any single one (input dropout of Mult-DAE, Liang et al., WWW 2018). A sum of
            the others is scaled up by as much.
        table: The vectors of an item tower's `Id` to share; a table of its own by default.
    """

    def __init__(
        self,
        name: str,
        vocabulary: Sequence[str],
        dim: int = 256,
        dropout: float = 0.0,
        table: tf.keras.layers.Embedding | None = None,
    ) -> None:
        super().__init__(name=name)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"{name}: dropout must be in [0, 1); got {dropout}.")
        self.vocabulary, self.dim, self.dropout = tuple(vocabulary), dim, dropout
        self.lookup = tf.keras.layers.StringLookup(
            vocabulary=list(self.vocabulary) or [" "], mask_token=""
        )
        self.is_shared = table is not None
        self.table = table or embedding_table(len(self.vocabulary) + 2, dim)

    @classmethod
    def over(cls, name: str, item_id: Id, **kwargs) -> "History":
        """An encoder over the vectors of an item tower's ids."""
        kwargs["dim"] = item_id.dim
        return cls(name, item_id.vocabulary, table=item_id.table, **kwargs)

    @classmethod
    def fit(cls, name: str, values: Iterable[str], **kwargs) -> "History":
        """An encoder that knows the distinct item ids `values` of the training rows."""
        return cls(name, sorted(set(values)), **kwargs)

    def index(self, values):
        return tf.cast(self.lookup(values), tf.int32)

    def rows(self, index: tf.Tensor) -> tf.Tensor:
        """Rows of the table; an item tower's has none for padding."""
        return tf.maximum(index - 1, 0) if self.is_shared else index

    def kept(self, index: tf.Tensor, training: bool) -> tf.Tensor:
        """Which events of `index` `[batch_size, n]` to use: known ones, thinned in training."""
        kept = index > UNKNOWN
        if training and self.dropout > 0:
            kept &= tf.random.uniform(tf.shape(index)) >= self.dropout
        return kept

    def get_config(self):
        return {
            "name": self.name,
            "vocabulary": self.vocabulary,
            "dim": self.dim,
            "dropout": self.dropout,
        }


class MeanHistory(History):
    """Bag of past items: sum of their vectors over (number of events) ** `power`.

    `power` 1 is the mean; 1/2 keeps the length of a sum of independent vectors, so that the tower
    still sees how much is known of the user. An empty history gives zeros.

    With `ratings`, a second bag from a table of its own weighs each event by how far its rating
    lies above the user's mean rating, which tells what was liked from what was merely seen.
    """

    def __init__(
        self,
        name: str,
        vocabulary: Sequence[str],
        dim: int = 256,
        dropout: float = 0.0,
        power: float = 0.5,
        ratings: bool = False,
        table: tf.keras.layers.Embedding | None = None,
    ) -> None:
        super().__init__(name, vocabulary, dim, dropout, table)
        self.power, self.ratings = power, ratings
        if ratings:
            self.rating_table = embedding_table(len(self.vocabulary) + 2, dim)

    @property
    def inputs(self):
        rating = [Input(f"{self.name}_rating", "float32", (None,))] if self.ratings else []
        return [Input(self.name, "string", (None,)), *rating]

    def call(self, encoded, training=False):
        index = encoded[self.name]  # [batch_size, n]
        kept = self.kept(index, training)
        count = tf.reduce_sum(tf.cast(index > UNKNOWN, tf.float32), 1, keepdims=True)
        scale = 1.0 / tf.maximum(count, 1.0) ** self.power
        if training:
            scale /= 1.0 - self.dropout  # the expected bag is the one that serving sees
        weight = tf.cast(kept, tf.float32)
        bags = [weighted_bag(self.table, self.rows(index), weight, training) * scale]
        if self.ratings:
            rating = encoded[f"{self.name}_rating"]
            rated = kept & ~tf.math.is_nan(rating)
            rating = tf.where(rated, rating, 0.0)
            mean = tf.math.divide_no_nan(
                tf.reduce_sum(rating, 1, keepdims=True),
                tf.reduce_sum(tf.cast(rated, tf.float32), 1, keepdims=True),
            )
            weight = tf.where(rated, rating - mean, 0.0)
            bags.append(weighted_bag(self.rating_table, index, weight, training) * scale)
        return tf.concat(bags, 1)

    def get_config(self):
        return super().get_config() | {"power": self.power, "ratings": self.ratings}


def weighted_bag(
    table: tf.keras.layers.Embedding, index: tf.Tensor, weight: tf.Tensor, training: bool = False
) -> tf.Tensor:
    """sum_j weight[i, j] * table[index[i, j]].

    Args:
        table: Embedding of `rows` rows.
        index: `[batch_size, n]` int32.
        weight: `[batch_size, n]` float32, 0 for what is not to count.
        training: Whether this is a training step, whose batches are large.

    Returns:
        `[batch_size, dim]`.
    """
    rows = table.input_dim
    if not table.built:
        table.build(None)
    # A request in serving holds so few events that reading the whole table would take longer than
    # all the rest. An exported tower, which cannot know its batches, gathers: to choose in the
    # graph by `tf.cond` costs a third of a request.
    events = index.shape.num_elements()
    many = training or (events is not None and events >= rows // 2)
    if many and rows <= COUNT_MATRIX_LIMIT:
        counts = tf.math.bincount(index, weight, minlength=rows, maxlength=rows, axis=-1)
        return tf.linalg.matmul(counts, table.embeddings)  # [batch_size, rows] x [rows, dim]
    return tf.einsum("bn,bnd->bd", weight, table(index))


class AttentionHistory(History):
    """Additive attention over past items (Bahdanau et al., 2015) with a bias for age.

    weight_j = softmax_j(v . tanh(W e_j) + b[bucket(t_last - t_j)]), vector = sum_j weight_j e_j

    The age of an event is counted from the user's last one, never from the request, in buckets
    that double from one minute on. Events past the `max_length` most recent are left out.
    """

    def __init__(
        self,
        name: str,
        vocabulary: Sequence[str],
        dim: int = 64,
        dropout: float = 0.0,
        max_length: int = 100,
        table: tf.keras.layers.Embedding | None = None,
    ) -> None:
        super().__init__(name, vocabulary, dim, dropout, table)
        self.max_length = max_length
        self.hidden = tf.keras.layers.Dense(dim, activation="tanh")
        self.score = tf.keras.layers.Dense(1, use_bias=False)
        self.age_bias = tf.keras.layers.Embedding(26, 1, embeddings_initializer="zeros")

    @property
    def inputs(self):
        return [
            Input(self.name, "string", (None,)),
            Input(f"{self.name}_time", "int64", (None,)),
        ]

    def call(self, encoded, training=False):
        index, time = self.recent(encoded)
        kept = self.kept(index, training)
        vectors = self.table(self.rows(index))  # [batch_size, length, dim]

        minutes = tf.cast(tf.reduce_max(time, 1, keepdims=True) - time, tf.float32) / 60.0
        bucket = tf.cast(tf.math.log(1.0 + tf.maximum(minutes, 0.0)) / tf.math.log(2.0), tf.int32)
        bucket = tf.where(time < 0, 25, tf.minimum(bucket, 24))
        logits = self.score(self.hidden(vectors)) + self.age_bias(bucket)  # [batch_size, length, 1]
        logits = tf.where(kept[:, :, None], logits, -1e9)
        weight = tf.nn.softmax(logits, axis=1) * tf.cast(kept[:, :, None], tf.float32)
        return tf.concat([tf.reduce_sum(weight * vectors, 1), masked_mean(vectors, kept)], 1)

    def recent(self, encoded: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """The last `max_length` items of each row and their times, each `[batch_size, length]`."""
        index, time = encoded[self.name], tf.cast(encoded[f"{self.name}_time"], tf.int64)
        length = tf.minimum(tf.shape(index)[1], self.max_length)
        events = tf.reduce_sum(tf.cast(index != PAD, tf.int32), 1, keepdims=True)
        take = tf.maximum(events - length, 0) + tf.range(length)[None, :]
        return tf.gather(index, take, batch_dims=1), tf.gather(time, take, batch_dims=1)

    def get_config(self):
        return super().get_config() | {"max_length": self.max_length}
