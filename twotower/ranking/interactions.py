"""Feature interactions: cross layers, factorisation machine, dot products, MLP.

Each interaction is a layer with the same arguments,

    vectors [n, num_fields, dim]    the vector of each field
    numbers [n, 2 * num_numbers]    standardised numbers, then a flag for each that is not known

and returns `(features [n, size], term [n, 1])`. Each head reads the features through a linear layer
and adds the term, which is 0 but for `DeepFM`.
"""

from collections.abc import Sequence
from typing import Any

from twotower.ranking.config import RankerConfig
from twotower.tf import require_one_replica, tf, tfrs


@tf.keras.saving.register_keras_serializable("twotower")
class Dense(tf.keras.layers.Layer):
    """Dense layers with ReLU and dropout after each, `[n, size]` -> `[n, widths[-1]]`.

    Without widths it returns what it is given.

    Args:
        widths: Widths of the layers.
        dropout: Share of activations dropped in training.
        batch_norm: Whether each layer is batch-normalised before ReLU.

    Raises:
        ValueError: `batch_norm` under a distribution strategy with several replicas, each of which
            would normalise its own part of the batch.
    """

    def __init__(
        self,
        widths: Sequence[int],
        dropout: float = 0.0,
        batch_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.widths, self.rate, self.batch_norm = tuple(widths), dropout, batch_norm
        self.stack = []
        if batch_norm and self.widths:
            require_one_replica("batch_norm")
        for width in self.widths:
            self.stack.append(tf.keras.layers.Dense(width, kernel_initializer="he_normal"))
            if batch_norm:
                self.stack.append(tf.keras.layers.BatchNormalization())
            self.stack.append(tf.keras.layers.ReLU())
            if dropout:
                self.stack.append(tf.keras.layers.Dropout(dropout))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        for layer in self.stack:
            inputs = layer(inputs, training=training)
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "widths": self.widths,
            "dropout": self.rate,
            "batch_norm": self.batch_norm,
        }


def flat(vectors: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """All features concatenated, `[n, num_fields * dim + 2 * num_numbers]`."""
    size = vectors.shape[1] * vectors.shape[2]
    # Not -1 for the rows: it cannot be found where there are no fields.
    return tf.concat([tf.reshape(vectors, [tf.shape(vectors)[0], size]), numbers], 1)


def no_term(features: tf.Tensor) -> tf.Tensor:
    """The term of an interaction that has none: zeros, `[n, 1]`."""
    return tf.zeros_like(features[:, :1])


class Interaction(tf.keras.layers.Layer):
    """Base class of the interactions, with the dense layers that each of them has.

    Attributes:
        extra_dim: Number of components of each embedding beyond `RankerConfig.dim`.
    """

    extra_dim = 0

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(name=config.interaction)
        self.deep = Dense(config.hidden, config.dropout, config.batch_norm, name="deep")


class MLP(Interaction):
    """Dense layers over all features, and nothing else."""

    def call(
        self, inputs: tuple[tf.Tensor, tf.Tensor], training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        features = self.deep(flat(*inputs), training=training)
        return features, no_term(features)


class DCN(Interaction):
    """Cross layers beside dense layers (DCN-v2, Wang et al., WWW 2021, equation 1).

    A cross layer is x_{l+1} = x_0 * (W x_l + b) + x_l, so l layers have products of up to l + 1
    features. It is `tfrs.layers.feature_interaction.Cross`. `MultiLayerDCN` of the same package has
    only low-rank matrices, so it has none for `cross_rank=0`.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.cross = [
            tfrs.layers.feature_interaction.Cross(
                projection_dim=config.cross_rank or None, kernel_initializer="glorot_uniform"
            )
            for _ in range(config.cross_layers)
        ]

    def call(
        self, inputs: tuple[tf.Tensor, tf.Tensor], training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        start = crossed = flat(*inputs)  # [n, size]
        for layer in self.cross:
            crossed = layer(start, crossed)
        if not self.deep.widths:
            return crossed, no_term(crossed)
        deep = self.deep(start, training=training)
        return tf.concat([crossed, deep], 1), no_term(deep)


def second_order(vectors: tf.Tensor) -> tf.Tensor:
    """The second-order term of a factorisation machine (Rendle, ICDM 2010, lemma 3.1).

    The sum of the dot products of all pairs of vectors, in linear time: for each component,
    ((sum of v)^2 - sum of v^2) / 2.

    Args:
        vectors: `[n, num_vectors, dim]`.

    Returns:
        `[n, 1]`.

    >>> second_order(tf.constant([[[1.0, 2.0], [3.0, 4.0]]])).numpy().tolist()
    [[11.0]]
    """
    total = tf.reduce_sum(vectors, 1)  # [n, dim]
    return 0.5 * tf.reduce_sum(total**2 - tf.reduce_sum(vectors**2, 1), 1, keepdims=True)


class DeepFM(Interaction):
    """A factorisation machine beside dense layers that share its vectors (Guo et al., IJCAI 2017).

    The term is the second-order term plus the first-order one, which is the last component of each
    vector. A number has an embedding, too, which is multiplied by the number; so has the flag of an
    unknown number.
    """

    extra_dim = 1

    def build(self, shapes: tuple[tf.TensorShape, tf.TensorShape]) -> None:
        (_, _, dim), (_, num_numbers) = shapes
        self.of_numbers = self.add_weight(
            "of_numbers",
            [num_numbers, dim],
            initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
        )
        super().build(shapes)

    def call(
        self, inputs: tuple[tf.Tensor, tf.Tensor], training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        vectors, numbers = inputs
        weighted = numbers[:, :, None] * self.of_numbers  # [n, 2 * num_numbers, dim + 1]
        every = tf.concat([vectors, weighted], 1)  # [n, num_vectors, dim + 1]
        term = second_order(every[:, :, :-1]) + tf.reduce_sum(every[:, :, -1], 1, keepdims=True)
        return self.deep(flat(vectors[:, :, :-1], numbers), training=training), term


class DLRM(Interaction):
    """Dense layers over the dot products of all pairs of vectors (Naumov et al., 2019, section 2).

    The bottom dense layers turn the numbers into one more vector. As in the paper, the top dense
    layers read this vector and the dot products. If a ranker has no numbers, they read the
    embeddings of the fields in its place. Otherwise the network would read no feature by itself.
    `tfrs.layers.feature_interaction.DotInteraction` makes the dot products.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.bottom = Dense((4 * config.dim, config.dim), name="bottom")
        self.dots = tfrs.layers.feature_interaction.DotInteraction(skip_gather=True)

    def call(
        self, inputs: tuple[tf.Tensor, tf.Tensor], training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        vectors, numbers = inputs
        beside, every = flat(vectors, numbers), tf.unstack(vectors, axis=1)
        if numbers.shape[1]:
            beside = self.bottom(numbers, training=training)
            every.append(beside)
        # [n, num_vectors ** 2], 0 on and above the diagonal: faster than gathering the rest.
        features = self.deep(tf.concat([beside, self.dots(every)], 1), training=training)
        return features, no_term(features)


KINDS: dict[str, type[Interaction]] = {"dcn": DCN, "deepfm": DeepFM, "dlrm": DLRM, "mlp": MLP}
