"""What both towers are: features, concatenated, then Dense 512 -> 256 -> 128, then L2."""

import re
from collections.abc import Sequence

from twotower.tf import tf
from twotower.towers.features import Feature, Input, require_float32

# Names of inputs; TensorFlow would change others, and the signatures have arguments of their own
# (`saved_models.py`).
ARGUMENT, RESERVED = re.compile(r"(?!state_)[A-Za-z][A-Za-z0-9_]*"), ("exclude", "k")


@tf.keras.saving.register_keras_serializable("twotower")
class DenseHead(tf.keras.layers.Layer):
    """Hidden Dense layers with an activation, a linear projection to `dim`, and L2 normalisation.

    The last layer has no activation: a ReLU there would confine all vectors to one orthant, in
    which no two can point away from each other. With L2, scores are cosines in [-1, 1]: training
    must divide them by a temperature (Yi et al., RecSys 2019, section 3), or the softmax over a
    large batch can never get near 1 for any positive.

    Args:
        hidden: Widths of the hidden layers.
        dim: Length of the vector.
        l2_normalise: Whether vectors have length 1.
        dropout: Share of hidden activations that are dropped in training.
        batch_norm: Whether hidden layers are batch-normalised, before the activation.
        activation: Of the hidden layers.
        starts_at_zero: Whether the projection gives zeros before it learns, for what is added to
            it to begin alone.

    Call args:
        x: `[batch_size, size]` float32.
        added: `[batch_size, dim]` that is added to the projection; None for nothing.

    Returns:
        `[batch_size, dim]` float32.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (512, 256),
        dim: int = 128,
        l2_normalise: bool = True,
        dropout: float = 0.0,
        batch_norm: bool = False,
        activation: str = "relu",
        starts_at_zero: bool = False,
        name: str = "head",
    ) -> None:
        require_float32()
        super().__init__(name=name)
        if dim < 1 or any(width < 1 for width in hidden):
            raise ValueError(f"layer widths must be positive; got {list(hidden)} and dim {dim}.")
        self.hidden, self.dim, self.l2_normalise = tuple(hidden), dim, l2_normalise
        self.dropout, self.batch_norm, self.activation = dropout, batch_norm, activation
        self.starts_at_zero = starts_at_zero
        self.block = tf.keras.Sequential(name="hidden") if hidden else None
        for width in hidden:
            self.block.add(tf.keras.layers.Dense(width, use_bias=not batch_norm))
            if batch_norm:
                self.block.add(tf.keras.layers.BatchNormalization())
            self.block.add(tf.keras.layers.Activation(activation))
            if dropout > 0:
                self.block.add(tf.keras.layers.Dropout(dropout))
        start = "zeros" if starts_at_zero else "glorot_uniform"
        self.projection = tf.keras.layers.Dense(dim, kernel_initializer=start, name="projection")

    def call(self, x, added=None, training=False):
        if self.block is not None:
            x = self.block(x, training=training)
        x = self.projection(x)
        if added is not None:
            x += added
        return tf.math.l2_normalize(x, -1) if self.l2_normalise else x

    def get_config(self):
        sizes = ("hidden", "dim", "l2_normalise", "dropout", "batch_norm", "activation")
        names = (*sizes, "starts_at_zero", "name")
        return {name: getattr(self, name) for name in names}


@tf.keras.saving.register_keras_serializable("twotower")
class Tower(tf.keras.layers.Layer):
    """Features -> concatenation -> DenseHead.

    Call it with encoded features (training) or through `embed` with raw ones (serving).

    Args:
        features: At least one; their inputs must have distinct names.
        head: The dense layers.
        shortcut: Name of a feature whose vector, of length `head.dim`, is added to what the dense
            layers make of all features (a residual connection; He et al., CVPR 2016, section 3.2);
            "" for none.

    Call args:
        encoded: Name -> tensor, as `encode` returns it.
        place: `[num_queries, 2]`, where queries share sequences (`Feature.at`).

    Returns:
        `[batch_size, dim]` float32.
    """

    def __init__(
        self, features: Sequence[Feature], head: DenseHead, name: str, shortcut: str = ""
    ) -> None:
        super().__init__(name=name)
        names = [spec.name for feature in features for spec in feature.inputs]
        if not features or len(set(names)) < len(names):
            raise ValueError(f"{name}: needs features with distinct inputs; got {names}.")
        if unfit := [one for one in names if not ARGUMENT.fullmatch(one) or one in RESERVED]:
            raise ValueError(
                f"{name}: inputs {unfit} cannot be arguments of a SavedModel: names are letters, "
                f"digits and _, begin with a letter, not with state_, and are none of {RESERVED}. "
                "Rename the columns."
            )
        if shortcut and shortcut not in [feature.name for feature in features]:
            raise ValueError(f"{name}: the shortcut {shortcut} is none of its features {names}.")
        self.features, self.head, self.shortcut = list(features), head, shortcut

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.head.dim

    @property
    def inputs(self) -> list[Input]:
        """The raw inputs of all features, in order."""
        return [spec for feature in self.features for spec in feature.inputs]

    @property
    def sequence_inputs(self) -> frozenset[str]:
        """Names of the inputs that belong to a sequence of events as a whole."""
        sequences = [feature for feature in self.features if feature.is_sequence]
        return frozenset(spec.name for feature in sequences for spec in feature.inputs)

    def index(self, name: str, values: tf.Tensor) -> tf.Tensor:
        """Strings of the one input `name` to integers, for tables looked up once."""
        return {feature.name: feature for feature in self.features}[name].index(values)

    def encode(self, raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Strings and numbers to dense integers and floats; no weights."""
        encoded = {}
        for feature in self.features:
            encoded |= feature.encode(raw)
        return encoded

    def call(self, encoded, training=False, place=None):
        if place is None:
            parts = [feature(encoded, training=training) for feature in self.features]
        else:
            parts = [feature.at(encoded, place, training) for feature in self.features]
        return self._together(parts, training)

    def _together(self, parts: list[tf.Tensor], training: bool) -> tf.Tensor:
        """The vector that the features' parts `[batch_size, ...]` make."""
        named = {feature.name: part for feature, part in zip(self.features, parts)}
        return self.head(tf.concat(parts, 1), named.get(self.shortcut), training=training)

    def begin(self, raw: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """A session's state, name -> `[batch_size, ...]`, and its vector `[batch_size, dim]`, from
        raw inputs; the state is that of the history (`history/bag.py`)."""
        return self._session(None, self.encode(raw))

    def step(
        self, state: dict[str, tf.Tensor], raw: dict[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The same after one more event, whose raw inputs stand in those of the history, each
        `[batch_size]`."""
        return self._session(state, self.encode(raw))

    def check(self, state: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Which rows of each part of a session's state are valid, name -> `[batch_size]` bool; for
        states that the caller has stored."""
        (history,) = (feature for feature in self.features if hasattr(feature, "step"))
        return history.check(state)

    def _session(self, state, encoded):
        parts = []
        for feature in self.features:
            if not hasattr(feature, "step"):
                parts.append(feature(encoded, training=False))
                continue
            state, part = feature.begin(encoded) if state is None else feature.step(state, encoded)
            parts.append(part)
        return state, self._together(parts, training=False)

    def embed(self, raw: dict[str, tf.Tensor]) -> tf.Tensor:
        """Raw inputs to vectors, as an exported tower does it."""
        return self(self.encode(raw), training=False)

    def build_weights(self) -> None:
        """Makes all weights, by a batch of no rows."""
        self.embed(
            {
                spec.name: tf.zeros(
                    [0, *(0 if size is None else size for size in spec.shape)], spec.dtype
                )
                for spec in self.inputs
            }
        )

    def get_config(self):
        """For `from_config`, which makes a tower of the same features without its weights.

        Raises:
            NotImplementedError: A history over the item tower's vectors or features, which no
                config of one tower can say; `query_tower` makes both together.
        """
        for feature in self.features:
            if (
                getattr(feature, "is_shared", False)
                or getattr(feature, "content", None) is not None
            ):
                raise NotImplementedError(
                    f"{self.name}: {feature.name} shares layers with the item tower, so this tower "
                    "cannot be made from a config of its own. Make both by twotower.towers.query."
                )
        return {
            "features": [tf.keras.saving.serialize_keras_object(one) for one in self.features],
            "head": tf.keras.saving.serialize_keras_object(self.head),
            "name": self.name,
            "shortcut": self.shortcut,
        }

    @classmethod
    def from_config(cls, config):
        made = tf.keras.saving.deserialize_keras_object
        features = [made(feature) for feature in config["features"]]
        return cls(features, made(config["head"]), config["name"], config["shortcut"])
