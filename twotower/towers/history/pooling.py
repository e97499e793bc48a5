"""Encoders that are a weighted mean of past events: by recency, and by attention."""

import math
from collections.abc import Sequence
from typing import Any

from twotower.tf import tf
from twotower.towers.history.config import AttentionConfig, RecencyConfig
from twotower.towers.history.sequence import (
    NUM_BUCKETS,
    UNSEEN,
    SequenceHistory,
    Window,
    bucket,
    earlier,
    since,
)


@tf.keras.saving.register_keras_serializable("twotower")
class RecencyHistory(SequenceHistory):
    """Mean of past events in which older ones weigh less.

    vector_p = sum_{j <= p} g^(p - j) x_j / sum_{j <= p} g^(p - j)

    where g in (0, 1) is learned. It starts at a half-life of `half_life` events. x_0 is the vector
    of a user without events. A session's state has the two sums beside its window.
    """

    config: RecencyConfig

    def __init__(
        self, name: str, vocabulary: Sequence[str], config: RecencyConfig, **kwargs: Any
    ) -> None:
        super().__init__(name, vocabulary, config, **kwargs)
        # log(-log g): any value of it gives a g in (0, 1).
        self.rate = self.add_weight(
            "rate",
            [],
            initializer=tf.keras.initializers.Constant(math.log(math.log(2) / config.half_life)),
        )

    def _keep(self) -> tf.Tensor:
        """g."""
        return tf.exp(-tf.exp(self.rate))

    def states(self, window: Window, training: bool = False) -> tf.Tensor:
        tokens = self.tokens(window, training)  # [batch_size, n + 1, dim]
        at = tf.range(tf.shape(tokens)[1])
        age = tf.cast(tf.maximum(at[:, None] - at, 0), tf.float32)
        weight = tf.where(earlier(tf.size(at)), self._keep() ** age, 0.0)  # [n + 1, n + 1]
        total = tf.reduce_sum(weight, 1, keepdims=True)
        return tf.einsum("ij,bjd->bid", weight / total, tokens)

    def _read(
        self, state: dict[str, tf.Tensor], request: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        tokens = self.tokens(self._held(state, request))
        last = tf.gather(tokens, state["length"], batch_dims=1)
        weight = self._weights(state["length"])
        before = {
            "sum": tf.einsum("bj,bjd->bd", weight, tokens),
            "weight": tf.reduce_sum(weight, 1),
        }
        return self._with_last(state | before, last)

    def _weights(self, length: tf.Tensor) -> tf.Tensor:
        """What each token weighs in the sums of a state, `[batch_size, window + 1]`."""
        age = length[:, None] - 1 - tf.range(self.config.length + 1)
        return tf.where(age >= 0, self._keep() ** tf.cast(tf.maximum(age, 0), tf.float32), 0.0)

    def check(self, state: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        right, weight = super().check(state), tf.reduce_sum(self._weights(state["length"]), 1)
        # A session adds the weights one by one, which rounds differently.
        is_sum = tf.abs(state["weight"] - weight) <= 1e-3 * (1.0 + weight)
        # A wrong length says nothing about the weight.
        return right | {"weight": right["weight"] & (is_sum | ~right["length"])}

    def _go_on(
        self, state: dict[str, tf.Tensor], request: tf.Tensor, known: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        token, last = tf.unstack(self.last_two(state, request), axis=1)
        total = tf.where(known[:, None], self._keep() * state["sum"] + token, state["sum"])
        weight = tf.where(known, self._keep() * state["weight"] + 1.0, state["weight"])
        return self._with_last(state | {"sum": total, "weight": weight}, last)

    def _with_last(self, state: dict, last: tf.Tensor) -> tuple[dict, tf.Tensor]:
        """A state and its vector. The sums of a state hold all tokens but the last, since that one
        may change with the request time."""
        total = self._keep() * state["sum"] + last
        return state, total / (self._keep() * state["weight"] + 1.0)[:, None]


@tf.keras.saving.register_keras_serializable("twotower")
class AttentionHistory(SequenceHistory):
    """Additive attention over past events (Bahdanau et al., 2015), biased by age, beside the mean.

    vector_p = [sum_{j <= p} a_j x_j, mean_{j <= p} x_j]
    a        = softmax_{j <= p}(v . tanh(W x_j) + b[bucket(t - t_j)])

    where t is the time of event p; with `request_time` it is the time of the next event or of the
    request. Each event changes t and so all weights: a session reads its whole window at each
    event.
    """

    config: AttentionConfig

    def __init__(
        self, name: str, vocabulary: Sequence[str], config: AttentionConfig, **kwargs: Any
    ) -> None:
        super().__init__(name, vocabulary, config, **kwargs)
        self.hidden = tf.keras.layers.Dense(self.dim, activation="tanh")
        self.score = tf.keras.layers.Dense(1, use_bias=False)
        self.age_bias = tf.keras.layers.Embedding(NUM_BUCKETS, 1, embeddings_initializer="zeros")

    @property
    def reads_times(self) -> bool:
        return True

    @property
    def size(self) -> int:
        return 2 * self.dim

    def states(self, window: Window, training: bool = False) -> tf.Tensor:
        tokens = self.tokens(window, training)  # [batch_size, n + 1, dim]
        time, now = self.token_times(window)
        age = self.age_bias(bucket(since(time[:, None, :], now[:, :, None])))[..., 0]
        logits = tf.linalg.matrix_transpose(self.score(self.hidden(tokens))) + age
        before = earlier(tf.shape(tokens)[1])
        weight = tf.nn.softmax(tf.where(before, logits, UNSEEN))  # [batch_size, n + 1, n + 1]
        mean = tf.cast(before, tf.float32)
        mean /= tf.reduce_sum(mean, 1, keepdims=True)
        return tf.concat([weight @ tokens, tf.einsum("ij,bjd->bid", mean, tokens)], 2)
