"""ItemContent: what past items are, beside their ids, as one vector each."""

import contextlib
from collections.abc import Mapping, Sequence

from twotower.tf import tf
from twotower.towers.features import Feature


class ItemContent(tf.keras.layers.Layer):
    """Features of items (title, genres, year), projected to the length of an event's vector.

    vector_i = W [feature_1(i), feature_2(i), ...]

    so that a past item with few events of its own still says what it is.

    Args:
        features: Of items, without the id; an item tower's, to share its weights, or others.
        encoded: Their encoded inputs for the items of a history's vocabulary, `[num_items, ...]`.
        dim: Length of the vectors.

    Call args:
        index: Integers of any shape, rows of a history's vocabulary: item i is row i + 2.
        training: Whether this is a training step.

    Returns:
        The shape of `index` and `dim`; what stands for padding or an unknown item means nothing.
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
    def fix(self):
        """While it lasts, all items' vectors as they are now are looked up and not computed: what
        is exported learns no more, and those of three items are a tenth of a session's event."""
        self.fixed = tf.Variable(self.vectors(None, False), trainable=False)
        try:
            yield self.fixed
        finally:
            self.fixed = None

    def vectors(self, rows: tf.Tensor | None, training: bool) -> tf.Tensor:
        """Of the items at `rows` `[n]`, or of all."""
        encoded = {
            name: values if rows is None else tf.gather(values, rows)
            for name, values in self._encoded
        }
        parts = [feature(encoded, training=training) for feature in self.features]
        return self.projection(tf.concat(parts, 1))

    def call(self, index, training=False):
        rows = tf.maximum(index - 2, 0)
        if self.fixed is not None and not training:
            return tf.gather(self.fixed, rows)
        # Each item once, however often it was chosen and however many others there are.
        distinct, place = tf.unique(tf.reshape(rows, [-1]))
        vectors = self.vectors(distinct, training)
        return tf.gather(vectors, tf.reshape(place, tf.shape(index)))
