"""HSTUHistory: pointwise gated attention over past events, biased by distance and time."""

from twotower.tf import tf
from twotower.towers.history.config import HSTUConfig
from twotower.towers.history.transformer import TransformerHistory, merge_heads, split_heads


class GatedBlock(tf.keras.layers.Layer):
    """The block of HSTU (Zhai et al., ICML 2024, section 3.1, equations 1 to 3).

    u, v, q, k = split(silu(W_1 norm(x)))
    a          = silu(q k^T + bias) / N         for each token and those before it
    y          = x + W_2 (norm(a v) * u)

    There is no softmax, so the contribution of a token does not shrink if there are more of them,
    and the block can distinguish ten similar events from one. N is the number of tokens of a full
    window.

    Args:
        dim: Length of the vectors.
        heads: Number of attention heads; a divisor of `dim`.
        dropout: Share of activations dropped in training.
        num_tokens: N.
    """

    def __init__(self, dim: int, heads: int, dropout: float, num_tokens: int) -> None:
        super().__init__()
        self.heads, self.num_tokens = heads, num_tokens
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        self.projection = tf.keras.layers.Dense(4 * dim, activation=tf.nn.silu)
        self.attended_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        self.out = tf.keras.layers.Dense(dim)
        self.drop = tf.keras.layers.Dropout(dropout)

    def project(self, x: tf.Tensor, m: int | tf.Tensor) -> tuple[tuple, tf.Tensor, tf.Tensor]:
        """As in `AttentionBlock.project`; the first value is a pair of the queries and the gates
        `[batch_size * m, dim]`."""
        gates, *parts = tf.split(self.projection(self.norm(x)), 4, axis=1)
        values, queries, keys = (split_heads(part, self.heads, m) for part in parts)
        return (queries, gates), keys, values

    def mix(
        self,
        x: tf.Tensor,
        queries: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        bias: tf.Tensor,
        training: bool = False,
    ) -> tf.Tensor:
        """As in `AttentionBlock.mix`."""
        queries, gates = queries
        logits = tf.matmul(queries, keys, transpose_b=True) + bias
        weight = tf.nn.silu(logits) / self.num_tokens
        attended = merge_heads(weight @ values)  # [batch_size * m, dim]
        return x + self.out(self.drop(self.attended_norm(attended) * gates, training=training))


@tf.keras.saving.register_keras_serializable("twotower")
class HSTUHistory(TransformerHistory):
    """Blocks of pointwise gated attention, biased by distance and by time (HSTU).

    All else is as in `TransformerHistory`. Here all blocks share their biases, and each head has
    different ones; in the authors' code each block has different biases, which its heads share.
    """

    config: HSTUConfig

    def make_block(self) -> tf.keras.layers.Layer:
        return GatedBlock(self.dim, self.config.heads, self.config.dropout, self.num_tokens)
