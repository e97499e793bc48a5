"""Self-attention over past events: causal (SASRec) and masked (BERT4Rec)."""

import math
from collections.abc import Sequence
from typing import Any

from twotower.tf import tf
from twotower.towers.features import embedding_table
from twotower.towers.history.config import HSTUConfig, TransformerConfig
from twotower.towers.history.sequence import (
    NUM_BUCKETS,
    UNSEEN,
    SequenceHistory,
    Window,
    bucket,
    earlier,
    since,
)

# Stands for an item that the cloze task hides.
HIDDEN = -1


def looked_up(table: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Biases for each head, looked up in a table.

    The gradient of a row is a weighted count for each head. TensorFlow's gradient of a lookup would
    sort hundreds of thousands of rows with a few numbers each.

    Args:
        table: `[rows, heads]`.
        index: `[batch_size, m, n]` int32 rows.

    Returns:
        `[batch_size, heads, m, n]`.
    """

    @tf.custom_gradient
    def lookup(table: tf.Tensor):
        rows, heads = table.shape

        def gradient(upstream):
            flat = tf.reshape(index, [-1])
            of_heads = [
                tf.math.bincount(flat, tf.reshape(of_head, [-1]), minlength=rows, maxlength=rows)
                for of_head in tf.unstack(upstream, heads, axis=1)
            ]
            return tf.stack(of_heads, 1)

        return tf.transpose(tf.gather(table, index), [0, 3, 1, 2]), gradient

    return lookup(tf.convert_to_tensor(table))


def swap(x: tf.Tensor) -> tf.Tensor:
    """`[batch_size, m, n, size]` to `[batch_size, n, m, size]`."""
    m, n = x.shape[1:3]
    if 1 in (m, n) and None not in (m, n):  # the same order, which a transpose would copy
        return tf.reshape(x, [-1, n, m, x.shape[3]])
    return tf.transpose(x, [0, 2, 1, 3])


def split_heads(x: tf.Tensor, heads: int, n: int | tf.Tensor) -> tf.Tensor:
    """Rows `[batch_size * n, dim]` to `[batch_size, heads, n, dim / heads]`."""
    return swap(tf.reshape(x, [-1, n, heads, x.shape[-1] // heads]))


def merge_heads(x: tf.Tensor) -> tf.Tensor:
    """`[batch_size, heads, n, dim / heads]` to rows `[batch_size * n, dim]`."""
    return tf.reshape(swap(x), [-1, x.shape[1] * x.shape[3]])


class AttentionBlock(tf.keras.layers.Layer):
    """Scaled dot-product attention, then two dense layers, each with a norm before and a skip.

    y = x + W_o [softmax(q k^T / sqrt(dim / heads) + bias) v],   q, k, v = W norm(x)
    z = y + W_2 gelu(W_1 norm(y))

    Vaswani et al., NeurIPS 2017, section 3.2, with the norms before the layers (Xiong et al., ICML
    2020, section 3), so that training needs no warm-up.

    Args:
        dim: Length of the vectors.
        heads: Number of attention heads; a divisor of `dim`.
        dropout: Share of attention weights and activations dropped in training.
        width: Width of the hidden layer, in multiples of `dim`.
    """

    def __init__(self, dim: int, heads: int, dropout: float, width: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        self.projection = tf.keras.layers.Dense(3 * dim)
        self.out = tf.keras.layers.Dense(dim)
        self.second_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        self.hidden = tf.keras.layers.Dense(width * dim, activation=tf.nn.gelu)
        self.hidden_out = tf.keras.layers.Dense(dim)
        self.drop = tf.keras.layers.Dropout(dropout)

    def project(self, x: tf.Tensor, m: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Queries, keys and values of tokens, `[batch_size, heads, m, dim / heads]` each.

        Args:
            x: `[batch_size * m, dim]`.
            m: Number of tokens of each sequence.
        """
        parts = tf.split(self.projection(self.norm(x)), 3, axis=1)
        return tuple(split_heads(part, self.heads, m) for part in parts)

    def mix(
        self,
        x: tf.Tensor,
        queries: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        bias: tf.Tensor,
        training: bool = False,
    ) -> tf.Tensor:
        """The block's output for `m` tokens that attend to `n`, `[batch_size * m, dim]`.

        Args:
            x: `[batch_size * m, dim]`: dense layers take rows, which needs fewer operations.
            queries: As returned by `project`.
            keys: `[batch_size, heads, n, dim / heads]`; in a session those of its state, in the
                layout in which they are multiplied.
            values: `[batch_size, heads, n, dim / heads]`.
            bias: Added to the logits; broadcasts to `[batch_size, heads, m, n]`. `UNSEEN` where a
                token may not attend to another.
            training: Whether dropout is applied.
        """
        queries = queries / math.sqrt(queries.shape[-1])  # cheaper than scaling the logits
        logits = tf.matmul(queries, keys, transpose_b=True) + bias
        weight = self.drop(tf.nn.softmax(logits), training=training)
        x += self.drop(self.out(merge_heads(weight @ values)), training=training)
        hidden = self.hidden_out(self.hidden(self.second_norm(x)))
        return x + self.drop(hidden, training=training)


@tf.keras.saving.register_keras_serializable("twotower")
class TransformerHistory(SequenceHistory):
    """Blocks of causal self-attention: SASRec (Kang and McAuley, ICDM 2018, section 3).

    Token p attends to the tokens 0 to p. Its output is the vector after p events, and later events
    do not change it. So a session keeps the keys and values of all tokens, and each event computes
    one token. With `request_time` the last token changes as the next event arrives, so each event
    computes two tokens.

    Unlike in the paper there is a learned token before the first event, for users without events.
    Hidden layers have four times the width and GELU, as in BERT.

    >>> history = TransformerHistory("history", ["a", "b"], TransformerConfig(dim=4))
    >>> encoded = history.encode({"history": tf.constant([["a", "b"], ["a", ""]])})
    >>> history(encoded).shape.as_list()
    [2, 4]
    """

    config: TransformerConfig | HSTUConfig

    def __init__(
        self,
        name: str,
        vocabulary: Sequence[str],
        config: TransformerConfig | HSTUConfig,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, vocabulary, config, **kwargs)
        dim, heads = self.dim, config.heads
        if dim % heads:
            raise ValueError(f"heads must be a divisor of a history's dim {dim}; got {heads}.")
        self.blocks = [self.make_block() for _ in range(config.layers)]
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        rows = self.num_tokens
        self.position_table = embedding_table(rows, dim) if config.positions == "absolute" else None
        self.distance_bias = self.time_bias_table = None
        if config.positions == "relative":
            self.distance_bias = self.add_weight(
                "distance_bias", [rows, heads], initializer="zeros"
            )
        if config.time_bias:
            shape = [NUM_BUCKETS, heads]
            self.time_bias_table = self.add_weight("time_bias", shape, initializer="zeros")

    def make_block(self) -> tf.keras.layers.Layer:
        """A new block, with `project` and `mix` as in `AttentionBlock`."""
        return AttentionBlock(self.dim, self.config.heads, self.config.dropout)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a full window."""
        return self.config.length + 1

    @property
    def reads_times(self) -> bool:
        return super().reads_times or self.config.time_bias

    def with_positions(self, tokens: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        if self.position_table is None:
            return tokens
        return tokens + self.position_table(positions) * self.dim**0.5

    def bias(self, window: Window, positions: tf.Tensor) -> tf.Tensor:
        """The biases of attention from some tokens to all; broadcasts to
        `[batch_size, heads, m, n + 1]`.

        Args:
            window: The events.
            positions: `[batch_size or 1, m]` int32, the tokens that attend.
        """
        total, width = tf.zeros([1, 1, 1, 1]), tf.shape(window.items)[1] + 1
        if self.config.positions == "relative":
            distance = tf.abs(
                positions[:, :, None] - tf.range(width)
            )  # [batch_size or 1, m, n + 1]
            total += looked_up(self.distance_bias, distance)
        if self.config.time_bias:
            times, asked = self.token_times(window)
            at = tf.broadcast_to(positions, [tf.shape(times)[0], tf.shape(positions)[1]])
            asked = tf.gather(asked, at, batch_dims=1)  # [batch_size, m]
            age = bucket(self.span(since(times[:, None, :], asked[:, :, None])))
            total += looked_up(self.time_bias_table, age)
        return total

    def span(self, seconds: tf.Tensor) -> tf.Tensor:
        """The time for which a bias is looked up, int64 of the shape of `seconds`. Here it is
        `seconds`; a negative one (times that descend) then counts as 0."""
        return seconds

    def mask(self, window: Window) -> tf.Tensor:
        """Which token may attend to which, bool that broadcasts to
        `[batch_size, heads, n + 1, n + 1]`."""
        return earlier(tf.shape(window.items)[1] + 1)

    def _layers(self, window: Window, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """(all outputs `[batch_size, n + 1, dim]`; the keys and values of each block by their names
        in a state, `[batch_size, heads, n + 1, dim / heads]` each)."""
        tokens, kept = self.tokens(window, training), {}
        shape = tf.shape(tokens)
        width = tokens.shape[1] or shape[1]
        x, positions = tf.reshape(tokens, [-1, self.dim]), tf.range(width)[None, :]
        bias = tf.where(self.mask(window), self.bias(window, positions), UNSEEN)
        for number, block in enumerate(self.blocks):
            queries, keys, values = block.project(x, width)
            x = block.mix(x, queries, keys, values, bias, training)
            kept |= {f"keys_{number}": keys, f"values_{number}": values}
        return tf.reshape(self.norm(x), shape), kept

    def states(self, window: Window, training: bool = False) -> tf.Tensor:
        return self._layers(window, training)[0]

    def _read(
        self, state: dict[str, tf.Tensor], request: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        outputs, kept = self._layers(self._held(state, request), False)
        vector = tf.gather(outputs, state["length"], batch_dims=1)
        return state | kept, vector

    def _go_on(
        self, state: dict[str, tf.Tensor], request: tf.Tensor, known: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        window, m = self._held(state, request), 2 if self.config.request_time else 1
        positions = tf.maximum(state["length"][:, None] + tf.range(1 - m, 1), 0)  # [batch_size, m]
        x = tf.reshape(self.last_tokens(window, positions), [-1, self.dim])
        seen = (tf.range(self.num_tokens) <= positions[:, :, None])[:, None]
        bias = tf.where(seen, self.bias(window, positions), UNSEEN)
        heads = self.config.heads
        # As rows of `dim / heads`, token p of head h of session b is (b * heads + h) * n + p.
        first = tf.range(tf.shape(positions)[0] * heads) * self.num_tokens
        at = tf.reshape(first, [-1, heads, 1]) + positions[:, None]  # [batch_size, heads, m]

        def with_new(cache: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
            rows, new = (tf.reshape(part, [-1, self.dim // heads]) for part in (cache, new))
            rows = tf.tensor_scatter_nd_update(rows, tf.reshape(at, [-1, 1]), new)
            return tf.reshape(rows, [-1, *cache.shape[1:]])

        for number, block in enumerate(self.blocks):
            queries, *new = block.project(x, m)
            names = f"keys_{number}", f"values_{number}"
            both = [with_new(state[name], part) for name, part in zip(names, new)]
            state = state | dict(zip(names, both))
            x = block.mix(x, queries, *both, bias)
        return state, tf.reshape(self.norm(x), [-1, m, self.dim])[:, -1]


@tf.keras.saving.register_keras_serializable("twotower")
class MaskedTransformerHistory(TransformerHistory):
    """Blocks of self-attention in both directions: BERT4Rec (Sun et al., CIKM 2019, section 3).

    Training hides some events and predicts them (the cloze task, `at`). The last event of a window
    is always hidden; in the paper only in a part of the samples. Serving adds a hidden token after
    the last event. Norms come before the layers (`AttentionBlock`). A new event changes all tokens,
    so a session reads its whole window at each event.
    """

    is_causal = False

    def __init__(
        self, name: str, vocabulary: Sequence[str], config: TransformerConfig, **kwargs: Any
    ) -> None:
        super().__init__(name, vocabulary, config, **kwargs)
        at_random = tf.keras.initializers.RandomNormal(stddev=self.dim**-0.5)
        self.hidden_vector = self.add_weight("hidden", [self.dim], initializer=at_random)

    @property
    def num_tokens(self) -> int:
        return super().num_tokens + 1

    def event_vectors(self, window: Window, training: bool = False) -> tf.Tensor:
        window_seen = window._replace(items=tf.maximum(window.items, 0))
        seen = super().event_vectors(window_seen, training)
        hidden = (window.items == HIDDEN)[:, :, None]
        return tf.where(hidden, self.hidden_vector * self.dim**0.5, seen)

    def span(self, seconds: tf.Tensor) -> tf.Tensor:
        return tf.abs(seconds)  # tokens also attend to later ones

    def mask(self, window: Window) -> tf.Tensor:
        here = tf.range(tf.shape(window.items)[1] + 1) <= window.length[:, None]
        return here[:, None, None]  # [batch_size, 1, 1, n + 1]

    def states(self, window: Window, training: bool = False) -> tf.Tensor:
        """The vector after all events, at position `length`, `[batch_size, n + 1, dim]`. Other
        positions have no meaning."""
        items, times, ratings = (tf.pad(column, [[0, 0], [0, 1]]) for column in window[:3])
        here = tf.range(tf.shape(items)[1]) == window.length[:, None]
        time = tf.gather(times, tf.maximum(window.length - 1, 0), batch_dims=1)
        if self.config.request_time:
            time = window.request
        asked = Window(
            tf.where(here, HIDDEN, items),
            tf.where(here, time[:, None], times),
            ratings,
            window.length + 1,
            window.request,
        )
        return self._layers(asked, training)[0][:, 1:]

    def at(
        self, encoded: dict[str, tf.Tensor], position: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        window = self.whole(encoded)
        shape = tf.shape(window.items)
        ones = tf.ones_like(position[:, 0])
        hidden = tf.scatter_nd(position - [0, 1], ones, shape) > 0  # token p is event p - 1
        window = window._replace(items=tf.where(hidden, HIDDEN, window.items))
        return tf.gather_nd(self._layers(window, training)[0], position)

    _read, _go_on = SequenceHistory._read, SequenceHistory._go_on
