"""GRUHistory: a recurrent network over past events (GRU4Rec)."""

from twotower.tf import tf
from twotower.towers.history.sequence import SequenceHistory


@tf.keras.saving.register_keras_serializable("twotower")
class GRUHistory(SequenceHistory):
    """Gated recurrent units, one layer above the other (Hidasi et al., ICLR 2016, section 3.1).

    h_p = (1 - z_p) * c_p + z_p * h_{p-1}

    with the update gate z and the candidate c of Cho et al., 2014, in Keras' form. A session state
    has one h a layer, that before the last event, beside its window: until that is full an event
    costs the same however long the history.
    """

    settings = SequenceHistory.settings | {"num_layers": "layers"}

    def __init__(self, name, vocabulary, dim=64, num_layers: int = 1, **kwargs) -> None:
        super().__init__(name, vocabulary, dim, **kwargs)
        if num_layers < 1:
            raise ValueError(f"{name}: num_layers must be 1 or more; got {num_layers}.")
        self.num_layers = num_layers
        self.layers = [tf.keras.layers.GRU(dim, return_sequences=True) for _ in range(num_layers)]

    def _layers(self, window, training) -> list[tf.Tensor]:
        """What each layer says after each token, `[batch_size, n + 1, dim]` each."""
        outputs = [self.tokens(window, training)]
        for layer in self.layers:
            outputs.append(self.drop(layer(outputs[-1]), training=training))
        return outputs[1:]

    def states(self, window, training=False):
        return self._layers(window, training)[-1]

    def _read(self, state, request):
        outputs = self._layers(self._held(state, request), False)
        # Before the last token, which a request may have to be told: zeros before the first.
        padded = [tf.pad(output, [[0, 0], [1, 0], [0, 0]]) for output in outputs]
        before = [tf.gather(output, state["length"], batch_dims=1) for output in padded]
        vector = tf.gather(outputs[-1], state["length"], batch_dims=1)
        return state | {"hidden": tf.stack(before, 1)}, vector

    def _go_on(self, state, request, known):
        tokens, hidden = self.last_two(state, request), state["hidden"]
        hidden = tf.where(known[:, None, None], self._step(tokens[:, 0], hidden), hidden)
        last = self._step(tokens[:, 1], hidden)
        return state | {"hidden": hidden}, last[:, -1]

    def _step(self, x: tf.Tensor, hidden: tf.Tensor) -> tf.Tensor:
        """One token `[batch_size, dim]` through all layers, `[batch_size, num_layers, dim]`."""
        after = []
        for number, layer in enumerate(self.layers):
            x, _ = layer.cell(x, [hidden[:, number]])
            after.append(x)
        return tf.stack(after, 1)

    def get_config(self):
        return super().get_config() | {"num_layers": self.num_layers}
