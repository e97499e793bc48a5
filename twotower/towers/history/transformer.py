"""Self-attention over past events: causal (SASRec) and masked (BERT4Rec)."""

import math

from twotower.tf import tf
from twotower.towers.features import embedding_table
from twotower.towers.history.sequence import (
    NUM_BUCKETS,
    UNSEEN,
    SequenceHistory,
    Window,
    bucket,
    earlier,
    since,
)

POSITIONS = ("absolute", "relative", "none")
# In the place of an item that is asked for.
HIDDEN = -1


def looked_up(table: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """A bias for each head: `[rows, heads]` at `[batch_size, m, n]` is `[batch_size, heads, m, n]`.

    The gradient of a row is a sum over all places that it is looked up at, a weighted count for
    each head: TensorFlow's own would sort hundreds of thousands of rows of a few numbers.
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

    def project(self, x: tf.Tensor, m: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """`[batch_size * m, dim]` -> what the tokens themselves bring to `mix`; keys and values,
        `[batch_size, heads, m, dim / heads]`. Here the first are queries, of the same shape."""
        parts = tf.split(self.projection(self.norm(x)), 3, axis=1)
        return tuple(split_heads(part, self.heads, m) for part in parts)

    def mix(self, x, queries, keys, values, bias, training: bool = False) -> tf.Tensor:
        """The block's output for `m` tokens that attend to `n`, `[batch_size * m, dim]`.

        Args:
            x: `[batch_size * m, dim]`; dense layers take rows, with few small ops an event.
            queries: Of `project`.
            keys: `[batch_size, heads, n, dim / heads]`; of a session those that its state keeps,
                which lie as they are multiplied.
            values: `[batch_size, heads, n, dim / heads]`.
            bias: Added to the logits; broadcasts to `[batch_size, heads, m, n]`. `UNSEEN` where a
                token may not attend to another.
            training: Whether to drop.
        """
        logits = tf.matmul(queries, keys, transpose_b=True) / math.sqrt(queries.shape[-1]) + bias
        weight = self.drop(tf.nn.softmax(logits), training=training)
        x += self.drop(self.out(merge_heads(weight @ values)), training=training)
        hidden = self.hidden_out(self.hidden(self.second_norm(x)))
        return x + self.drop(hidden, training=training)


@tf.keras.saving.register_keras_serializable("twotower")
class TransformerHistory(SequenceHistory):
    """Blocks of causal self-attention: SASRec (Kang and McAuley, ICDM 2018, section 3).

    Token p attends to the tokens 0 ... p, so its output is the vector after p events and never
    changes again: a session keeps keys and values of all tokens, and an event costs one token. Told
    the time of the request, the last token is a draft: the next event's time makes it final, so an
    event costs two.

    Other than in the paper a learned token stands before the first event, for users of whom nothing
    is known, and hidden layers are four times as wide, with GELU, as BERT's are.

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

    settings = SequenceHistory.settings | {
        "num_layers": "layers",
        "heads": "heads",
        "positions": "positions",
        "time_bias": "time_bias",
    }

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
            age = bucket(self.span(since(times[:, None, :], asked[:, :, None])))
            total += looked_up(self.time_bias_table, age)
        return total

    def span(self, seconds: tf.Tensor) -> tf.Tensor:
        """What a bias is told of the time since a token: times that descend are no time."""
        return seconds

    def mask(self, window: Window) -> tf.Tensor:
        """Which token may attend to which, broadcasts to `[batch_size, heads, n + 1, n + 1]`."""
        return earlier(tf.shape(window.items)[1] + 1)

    def _layers(self, window: Window, training: bool) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """All outputs, `[batch_size, n + 1, dim]`, and each block's keys and values by the names
        that they have in a state, `[batch_size, heads, n + 1, dim / heads]`."""
        tokens, kept = self.tokens(window, training), {}
        shape = tf.shape(tokens)
        width = tokens.shape[1] or shape[1]
        x, places = tf.reshape(tokens, [-1, self.dim]), tf.range(width)[None, :]
        bias = tf.where(self.mask(window), self.bias(window, places), UNSEEN)
        for number, block in enumerate(self.blocks):
            queries, keys, values = block.project(x, width)
            x = block.mix(x, queries, keys, values, bias, training)
            kept |= {f"keys_{number}": keys, f"values_{number}": values}
        return tf.reshape(self.norm(x), shape), kept

    def states(self, window, training=False):
        return self._layers(window, training)[0]

    def _read(self, state, request):
        outputs, kept = self._layers(self._held(state, request), False)
        vector = tf.gather(outputs, state["length"], batch_dims=1)
        return state | kept, vector

    def _go_on(self, state, request, known):
        window, m = self._held(state, request), 2 if self.time_told else 1
        places = tf.maximum(state["length"][:, None] + tf.range(1 - m, 1), 0)  # [batch_size, m]
        x = tf.reshape(self.last_tokens(window, places), [-1, self.dim])
        seen = (tf.range(self.num_tokens) <= places[:, :, None])[:, None]
        bias = tf.where(seen, self.bias(window, places), UNSEEN)
        # As rows of `dim / heads`, token p of head h of session b is (b * heads + h) * n + p.
        first = tf.range(tf.shape(places)[0] * self.heads) * self.num_tokens
        at = tf.reshape(first, [-1, self.heads, 1]) + places[:, None]  # [batch_size, heads, m]

        def with_new(cache: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
            rows, new = (tf.reshape(part, [-1, self.dim // self.heads]) for part in (cache, new))
            rows = tf.tensor_scatter_nd_update(rows, tf.reshape(at, [-1, 1]), new)
            return tf.reshape(rows, [-1, *cache.shape[1:]])

        for number, block in enumerate(self.blocks):
            queries, *new = block.project(x, m)
            names = f"keys_{number}", f"values_{number}"
            both = [with_new(state[name], part) for name, part in zip(names, new)]
            state = state | dict(zip(names, both))
            x = block.mix(x, queries, *both, bias)
        return state, tf.reshape(self.norm(x), [-1, m, self.dim])[:, -1]

    def get_config(self):
        names = ("num_layers", "heads", "positions", "time_bias")
        return super().get_config() | {name: getattr(self, name) for name in names}


@tf.keras.saving.register_keras_serializable("twotower")
class MaskedTransformerHistory(TransformerHistory):
    """Blocks of self-attention in both directions: BERT4Rec (Sun et al., CIKM 2019, section 3).

    Training hides some events and asks for them (the cloze task, `at`), the last one of a window
    always, and not in a part of the samples as in the paper; serving puts a hidden token behind the
    last event. Norms are in front (`AttentionBlock`). Every new event changes every token, so a
    session reads its window anew.
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

    def span(self, seconds):
        return tf.abs(seconds)  # later tokens are attended to as well

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
