"""ItemContent: the features of past items beside their ids, as one vector each."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from twotower.tf import tf
from twotower.towers.features import Feature


class ItemContent(tf.keras.layers.Layer):
    """Features of items (title, genres, year), projected to the length of an event's vector.

    vector_i = W [feature_1(i), feature_2(i), ...]

    An item whose id has few events to learn from still has its features.

    Args:
        features: Features of items without the id: those of the item tower, to share its weights,
            or others.
        encoded: Their encoded inputs for the items of a history's vocabulary, `[num_items, ...]`.
        dim: Length of the vectors.

    Call args:
        index: int32 of any shape, encoded items of a history: item i is i + 2.
        training: Whether this is a training step.

    Returns:
        float32 of the shape of `index` and `dim`. Vectors of padding and of unknown items have no
        meaning.
    """

    def __init__(
        self, features: Sequence[Feature], encoded: Mapping[str, tf.Tensor], dim: int
    ) -> None:
        super().__init__(name="content")
        self.features = list(features)
        # A tuple: a dict attribute would be tracked as saved state.
        self._encoded = tuple((name, tf.constant(values)) for name, values in encoded.items())
        self.dim = dim
        self.projection = tf.keras.layers.Dense(dim, use_bias=False)
        self.fixed = None

    @contextlib.contextmanager
    def fix(self) -> Iterator[tf.Variable]:
        """A context in which the vectors of all items are computed once and then looked up.

        An export needs it: an exported tower learns no more, and to compute the vectors of three
        items would be a tenth of the time of a session's event.
        """
        self.fixed = tf.Variable(self.vectors(None, False), trainable=False)
        try:
            yield self.fixed
        finally:
            self.fixed = None

    def vectors(self, rows: tf.Tensor | None, training: bool) -> tf.Tensor:
        """Vectors of the items `rows` `[n]`, `[n, dim]`; of all items if `rows` is None."""
        encoded = {
            name: values if rows is None else tf.gather(values, rows)
            for name, values in self._encoded
        }
        parts = [feature(encoded, training=training) for feature in self.features]
        return self.projection(tf.concat(parts, 1))

    def call(self, index: tf.Tensor, training: bool = False) -> tf.Tensor:
        rows = tf.maximum(index - 2, 0)
        if self.fixed is not None and not training:
            return tf.gather(self.fixed, rows)
        # Each item of the batch once.
        distinct, index_of_row = tf.unique(tf.reshape(rows, [-1]))
        vectors = self.vectors(distinct, training)
        return tf.gather(vectors, tf.reshape(index_of_row, tf.shape(index)))
