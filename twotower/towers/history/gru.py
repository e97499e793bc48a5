"""GRUHistory: a recurrent network over past events (GRU4Rec)."""

from collections.abc import Sequence
from typing import Any

from twotower.tf import tf
from twotower.towers.history.config import GRUConfig
from twotower.towers.history.sequence import SequenceHistory, Window


@tf.keras.saving.register_keras_serializable("twotower")
class GRUHistory(SequenceHistory):
    """Gated recurrent units, one layer above the other (Hidasi et al., ICLR 2016, section 3.1).

    h_p = (1 - z_p) * c_p + z_p * h_{p-1}

    with the update gate z and the candidate c of Cho et al. (EMNLP 2014, section 2.3) as in Keras.
    A session's state has its window and, for each layer, h before the last event. So an event costs
    the same for any length of the history, until the window is full.
    """

    config: GRUConfig

    def __init__(
        self, name: str, vocabulary: Sequence[str], config: GRUConfig, **kwargs: Any
    ) -> None:
        super().__init__(name, vocabulary, config, **kwargs)
        self.layers = [
            tf.keras.layers.GRU(self.dim, return_sequences=True) for _ in range(config.layers)
        ]

    def _layers(self, window: Window, training: bool) -> list[tf.Tensor]:
        """The outputs of each layer after each token, `[batch_size, n + 1, dim]` each."""
        outputs = [self.tokens(window, training)]
        for layer in self.layers:
            outputs.append(self.drop(layer(outputs[-1]), training=training))
        return outputs[1:]

    def states(self, window: Window, training: bool = False) -> tf.Tensor:
        return self._layers(window, training)[-1]

    def _read(
        self, state: dict[str, tf.Tensor], request: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        outputs = self._layers(self._held(state, request), False)
        # The state before the last token, since that token may change with the request time. Before
        # the first token it is zero.
        padded = [tf.pad(output, [[0, 0], [1, 0], [0, 0]]) for output in outputs]
        before = [tf.gather(output, state["length"], batch_dims=1) for output in padded]
        vector = tf.gather(outputs[-1], state["length"], batch_dims=1)
        return state | {"hidden": tf.stack(before, 1)}, vector

    def _go_on(
        self, state: dict[str, tf.Tensor], request: tf.Tensor, known: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        tokens, hidden = self.last_two(state, request), state["hidden"]
        hidden = tf.where(known[:, None, None], self._step(tokens[:, 0], hidden), hidden)
        last = self._step(tokens[:, 1], hidden)
        return state | {"hidden": hidden}, last[:, -1]

    def _step(self, x: tf.Tensor, hidden: tf.Tensor) -> tf.Tensor:
        """One token `[batch_size, dim]` through all layers, `[batch_size, layers, dim]`."""
        after = []
        for number, layer in enumerate(self.layers):
            x, _ = layer.cell(x, [hidden[:, number]])
            after.append(x)
        return tf.stack(after, 1)
