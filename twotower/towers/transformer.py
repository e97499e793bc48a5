"""Self-attention over past events: causal (SASRec) and masked (BERT4Rec)."""

import math

from twotower import require_legacy_keras

require_legacy_keras()
import tensorflow as tf  # noqa: E402

from twotower.features import embedding_table  # noqa: E402
from twotower.towers.pooling import earlier  # noqa: E402
from twotower.towers.sequence import NUM_BUCKETS, SequenceHistory, Window, bucket  # noqa: E402

POSITIONS = ("absolute", "relative", "none")
# In the place of an item that is asked for.
HIDDEN = -1


def looked_up(table: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """A bias for each head: `[rows, heads]` at `[batch_size, m, n]` is `[batch_size, heads, m, n]`.

    Through a tensor, whose gradient is dense: millions of rows of a few would else be sorted.
    """
    return tf.transpose(tf.gather(tf.identity(table), index), [0, 3, 1, 2])


def split_heads(x: tf.Tensor, heads: int, batch_size: tf.Tensor) -> tf.Tensor:
    """Rows `[batch_size * n, dim]`, or `[batch_size, n, dim]`, to
    `[batch_size, heads, n, dim / heads]`."""
    x = tf.reshape(x, [batch_size, -1, heads, x.shape[-1] // heads])
    return tf.transpose(x, [0, 2, 1, 3])


def merge_heads(x: tf.Tensor) -> tf.Tensor:
    """`[batch_size, heads, n, dim / heads]` to rows `[batch_size * n, dim]`."""
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, x.shape[1] * x.shape[3]])


class AttentionBlock(tf.keras.layers.Layer):
    """Scaled dot-product attention, then two dense layers, each behind a norm and beside a skip.

    y = x + W_o [softmax(q k^T / sqrt(dim / heads) + bias) v],   q, k, v = W norm(x)
    z = y + W_2 gelu(W_1 norm(y))

    Vaswani et al., NeurIPS 2017, section 3.2, with the norms in front (Xiong et al., ICML 2020),
    which trains without a warm-up of its own.

    Args:
        dim: Length of the vectors.
        heads: Of attention; a divisor of `dim`.
        dropout: Share of attention weights and activations dropped in training.
        width: Of the hidden layer, in `dim`.
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

    def project(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """`[batch_size * m, dim]` -> queries, keys, values, of the same shape."""
        return tuple(tf.split(self.projection(self.norm(x)), 3, axis=1))

    def mix(self, x, queries, keys, values, bias, mask, training: bool = False) -> tf.Tensor:
        """The block's output for `m` tokens that attend to `n`, `[batch_size * m, dim]`.

        Args:
            x: `[batch_size * m, dim]`; dense layers take rows, with few small ops an event.
            queries: `[batch_size * m, dim]`.
            keys: `[batch_size, n, dim]`.
            values: `[batch_size, n, dim]`.
            bias: Added to the logits; broadcasts to `[batch_size, heads, m, n]`.
            mask: Which token may attend to which, likewise.
            training: Whether to drop.
        """
        batch_size = tf.shape(keys)[0]
        q, k, v = (split_heads(rows, self.heads, batch_size) for rows in (queries, keys, values))
        logits = tf.matmul(q, k, transpose_b=True) / math.sqrt(q.shape[-1]) + bias
        weight = self.drop(tf.nn.softmax(tf.where(mask, logits, -1e9)), training=training)
        x += self.drop(self.out(merge_heads(weight @ v)), training=training)
        hidden = self.hidden_out(self.hidden(self.second_norm(x)))
        return x + self.drop(hidden, training=training)


class TransformerHistory(SequenceHistory):
    """Blocks of causal self-attention: SASRec (Kang and McAuley, ICDM 2018, section 3).

    Token p attends to the tokens 0 ... p, so its output is the vector after p events and never
    changes again: a session keeps keys and values of all tokens, and an event costs one token. Told
    the time of the request, the last token is a draft: the next event's time makes it final, so an
    event costs two.

    Args:
        name: As in `SequenceHistory`.
        vocabulary: Likewise.
        dim: Likewise.
        num_layers: Blocks.
        heads: Of attention; a divisor of `dim`.
        positions: `absolute`, a vector for each place in the window; `relative`, a bias for each
            distance; or `none`.
        time_bias: Whether the time between two tokens is a bias, in buckets that double (as in
            HSTU; Zhai et al., ICML 2024, section 3.1).
        **kwargs: Of `SequenceHistory`.
    """

    def __init__(
        self,
        name,
        vocabulary,
        dim=64,
        num_layers: int = 2,
        heads: int = 2,
        positions: str = "absolute",
        time_bias: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(name, vocabulary, dim, **kwargs)
        if num_layers < 1 or heads < 1 or dim % heads:
            raise ValueError(
                f"{name}: num_layers must be 1 or more and heads a divisor of dim {dim}; got "
                f"{num_layers} and {heads}."
            )
        if positions not in POSITIONS:
            raise ValueError(f"{name}: positions must be one of {POSITIONS}; got {positions!r}.")
        self.num_layers, self.heads = num_layers, heads
        self.positions, self.time_bias = positions, time_bias
        self.blocks = [self.make_block() for _ in range(num_layers)]
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        rows = self.num_tokens
        self.position_table = embedding_table(rows, dim) if positions == "absolute" else None
        self.distance_bias = self.time_bias_table = None
        if positions == "relative":
            self.distance_bias = self.add_weight(
                "distance_bias", [rows, heads], initializer="zeros"
            )
        if time_bias:
            shape = [NUM_BUCKETS, heads]
            self.time_bias_table = self.add_weight("time_bias", shape, initializer="zeros")

    def make_block(self) -> tf.keras.layers.Layer:
        """One block; `project` and `mix` as in `AttentionBlock`."""
        return AttentionBlock(self.dim, self.heads, self.dropout)

    @property
    def num_tokens(self) -> int:
        """Tokens of a full window."""
        return self.max_length + 1

    @property
    def reads_times(self):
        return super().reads_times or self.time_bias

    def placed(self, tokens, places):
        if self.position_table is None:
            return tokens
        return tokens + self.position_table(places) * self.dim**0.5

    def bias(self, window: Window, places: tf.Tensor) -> tf.Tensor:
        """What is added to the logits of the tokens at `places` `[batch_size or 1, m]`, for all
        tokens; broadcasts to `[batch_size, heads, m, n + 1]`."""
        total, width = tf.zeros([1, 1, 1, 1]), tf.shape(window.items)[1] + 1
        if self.positions == "relative":
            distance = tf.abs(places[:, :, None] - tf.range(width))  # [batch_size or 1, m, n + 1]
            total += looked_up(self.distance_bias, distance)
        if self.time_bias:
            times, asked = self.token_times(window)
            at = tf.broadcast_to(places, [tf.shape(times)[0], tf.shape(places)[1]])
            asked = tf.gather(asked, at, batch_dims=1)  # [batch_size, m]
            age = bucket(tf.abs(asked[:, :, None] - times[:, None, :]))
            total += looked_up(self.time_bias_table, age)
        return total

    def mask(self, window: Window) -> tf.Tensor:
        """Which token may attend to which, broadcasts to `[batch_size, heads, n + 1, n + 1]`."""
        return earlier(tf.shape(window.items)[1] + 1)

    def _layers(self, window: Window, training: bool):
        """All outputs, and each block's keys and values, `[batch_size, num_layers, n + 1, dim]`."""
        tokens, kept = self.tokens(window, training), ([], [])
        shape = tf.shape(tokens)
        x, places = tf.reshape(tokens, [-1, self.dim]), tf.range(shape[1])[None, :]
        bias, mask = self.bias(window, places), self.mask(window)
        for block in self.blocks:
            queries, *both = block.project(x)
            keys, values = (tf.reshape(rows, shape) for rows in both)
            x = block.mix(x, queries, keys, values, bias, mask, training)
            kept[0].append(keys)
            kept[1].append(values)
        return tf.reshape(self.norm(x), shape), *(tf.stack(part, 1) for part in kept)

    def states(self, window, training=False):
        return self._layers(window, training)[0]

    def _read(self, state, request):
        outputs, keys, values = self._layers(self._held(state, request), False)
        vector = tf.gather(outputs, state["length"], batch_dims=1)
        return state | {"keys": keys, "values": values}, vector

    def _go_on(self, state, request, known):
        window = self._held(state, request)
        length = state["length"][:, None]
        places = tf.maximum(length + tf.range(-1, 1), 0) if self.time_told else length
        shape = tf.concat([tf.shape(places), [self.dim]], 0)
        x = tf.reshape(self.last_tokens(window, places), [-1, self.dim])
        bias = self.bias(window, places)
        mask = (tf.range(self.num_tokens) <= places[:, :, None])[:, None]
        rows = tf.broadcast_to(tf.range(shape[0])[:, None], shape[:2])
        for number, block in enumerate(self.blocks):
            queries, *new = block.project(x)
            at = tf.stack([rows, tf.fill(tf.shape(rows), number), places], 2)
            names = ("keys", "values")
            new = [tf.reshape(rows, shape) for rows in new]
            cache = [tf.tensor_scatter_nd_update(state[n], at, new[i]) for i, n in enumerate(names)]
            state = state | dict(zip(names, cache))
            x = block.mix(x, queries, *(part[:, number] for part in cache), bias, mask)
        return state, tf.reshape(self.norm(x), shape)[:, -1]

    def get_config(self):
        names = ("num_layers", "heads", "positions", "time_bias")
        return super().get_config() | {name: getattr(self, name) for name in names}


class MaskedTransformerHistory(TransformerHistory):
    """Blocks of self-attention in both directions: BERT4Rec (Sun et al., CIKM 2019, section 3).

    Training hides some events and asks for them (the cloze task, `at`); serving puts a hidden token
    behind the last event. Every new event changes every token, so a session reads its window anew.
    """

    is_causal = False

    def __init__(self, name, vocabulary, dim=64, **kwargs) -> None:
        super().__init__(name, vocabulary, dim, **kwargs)
        self.hidden_vector = self.add_weight(
            "hidden", [dim], initializer=tf.keras.initializers.RandomNormal(stddev=dim**-0.5)
        )

    @property
    def num_tokens(self):
        return super().num_tokens + 1

    def event_vectors(self, window, training=False):
        window_seen = window._replace(items=tf.maximum(window.items, 0))
        seen = super().event_vectors(window_seen, training)
        hidden = (window.items == HIDDEN)[:, :, None]
        return tf.where(hidden, self.hidden_vector * self.dim**0.5, seen)

    def mask(self, window):
        here = tf.range(tf.shape(window.items)[1] + 1) <= window.length[:, None]
        return here[:, None, None]  # [batch_size, 1, 1, n + 1]

    def states(self, window, training=False):
        """The vector after all events, at `length`; what stands at other places means nothing."""
        items, times, ratings = (tf.pad(column, [[0, 0], [0, 1]]) for column in window[:3])
        here = tf.range(tf.shape(items)[1]) == window.length[:, None]
        time = tf.gather(times, tf.maximum(window.length - 1, 0), batch_dims=1)
        if self.time_told:
            time = window.request
        asked = Window(
            tf.where(here, HIDDEN, items),
            tf.where(here, time[:, None], times),
            ratings,
            window.length + 1,
            window.request,
        )
        return self._layers(asked, training)[0][:, 1:]

    def at(self, encoded, place, training=False):
        window = self.whole(encoded)
        shape = tf.shape(window.items)
        ones = tf.ones_like(place[:, 0])
        hidden = tf.scatter_nd(place - [0, 1], ones, shape) > 0  # token p is event p - 1
        window = window._replace(items=tf.where(hidden, HIDDEN, window.items))
        return tf.gather_nd(self._layers(window, training)[0], place)

    _read, _go_on = SequenceHistory._read, SequenceHistory._go_on
