"""PositionBias: learns the effect of the position in a list on the labels.

The first item of a list is clicked more often because it is first. A ranker that is trained on such
clicks, without the position, mistakes the old order for quality. Therefore the logit of a shallow
tower, which reads only the position, is added in training and left out in serving (Zhao et al.,
"Recommending what video to watch next", RecSys 2019). PAL (Guo et al., RecSys 2019) multiplies
probabilities instead.
"""

from collections.abc import Sequence

from twotower.tf import tf


class PositionBias(tf.keras.layers.Layer):
    """A logit for each position and head, `[n]` int32 -> head -> `[n]`.

    Position 0, and any beyond the last one, is unknown and adds nothing. The logits are determined
    only up to a constant, which the bias of the head can compensate. So in serving, without a
    position, the order of candidates is right, but probabilities need calibration.

    Args:
        positions: Number of positions; the first is 1.
        heads: Names of the heads.
        dropout: Share of rows whose position is hidden in training, so that the network relies less
            on it.
    """

    def __init__(self, positions: int, heads: Sequence[str], dropout: float = 0.0) -> None:
        super().__init__(name="position_bias")
        self.positions, self.heads, self.rate = positions, tuple(heads), dropout

    def build(self, shape: tf.TensorShape) -> None:
        self.logits = self.add_weight(
            "logits", [self.positions, len(self.heads)], initializer="zeros"
        )
        super().build(shape)

    def call(self, position: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        position = tf.cast(position, tf.int32)
        if training and self.rate:
            hidden = tf.random.uniform(tf.shape(position)) < self.rate
            position = tf.where(hidden, tf.zeros_like(position), position)
        # one_hot gives zeros for a place out of range.
        bias = tf.one_hot(position - 1, self.positions) @ self.logits  # [n, num_heads]
        return {head: bias[:, row] for row, head in enumerate(self.heads)}
