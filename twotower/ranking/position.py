"""PositionBias: the part of a label that is due to the place in the list, learned beside it.

What stands first is clicked more because it stands first. A ranker that is trained on such clicks
and does not know the place takes the old order for quality. A shallow tower over the place alone
is therefore added to the logit in training and left out in serving (Zhao et al., "Recommending what
video to watch next", RecSys 2019; PAL, Guo et al., RecSys 2019, multiplies probabilities instead).
"""

from collections.abc import Sequence

from twotower.tf import tf


class PositionBias(tf.keras.layers.Layer):
    """A logit for each place and head, `[n]` int32 -> head -> `[n]`.

    Place 0, and any beyond the last one, is unknown and adds nothing. The logits are relative: a
    constant moves freely between them and the bias of the head. So in serving, without a place,
    the order of candidates is right but probabilities need a calibration.

    Args:
        positions: Number of places, 1 for the first one.
        heads: Names of the heads.
        dropout: Share of rows whose place is hidden in training, so that the network does not
            leave to the place what it can learn itself.
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
