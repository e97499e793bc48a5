"""The form of both towers: features are concatenated, then Dense 512 -> 256 -> 128, then L2."""

from collections.abc import Sequence
from typing import Any

from twotower.tf import tf
from twotower.towers.config import RESERVED, is_argument
from twotower.towers.features import Feature, Input, require_float32


@tf.keras.saving.register_keras_serializable("twotower")
class DenseHead(tf.keras.layers.Layer):
    """Hidden Dense layers with an activation, a linear projection to `dim`, and L2 normalisation.

    The last layer has no activation. A ReLU would make all components positive, so no two vectors
    could point away from each other. With L2 normalisation scores are cosines in [-1, 1]. Training
    must divide them by a temperature (Yi et al., RecSys 2019, section 3); otherwise the softmax of
    a large batch could not come near 1 for any positive.

    Args:
        hidden: Widths of the hidden layers.
        dim: Length of the vector.
        l2_normalise: Whether vectors have length 1.
        dropout: Share of hidden activations that are dropped in training.
        batch_norm: Whether hidden layers are batch-normalised, before the activation.
        activation: Activation of the hidden layers.
        starts_at_zero: Whether the projection starts as zeros, so that at first the output is
            `added` alone.

    Call args:
        x: `[batch_size, size]` float32.
        added: `[batch_size, dim]` that is added to the projection; None for nothing.

    Returns:
        `[batch_size, dim]` float32.

    >>> head = DenseHead(hidden=(8,), dim=4)
    >>> vectors = head(tf.ones([2, 5]))
    >>> vectors.shape.as_list(), tf.norm(vectors, axis=1).numpy().round(4).tolist()
    ([2, 4], [1.0, 1.0])
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

    def call(
        self, x: tf.Tensor, added: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        if self.block is not None:
            x = self.block(x, training=training)
        x = self.projection(x)
        if added is not None:
            x += added
        return tf.math.l2_normalize(x, -1) if self.l2_normalise else x

    def get_config(self) -> dict[str, Any]:
        sizes = ("hidden", "dim", "l2_normalise", "dropout", "batch_norm", "activation")
        names = (*sizes, "starts_at_zero", "name")
        return {name: getattr(self, name) for name in names}


@tf.keras.saving.register_keras_serializable("twotower")
class Tower(tf.keras.layers.Layer):
    """A tower: the vectors of its features are concatenated and go through a DenseHead.

    Training calls it with encoded inputs; serving calls `embed` with raw ones.

    Args:
        features: At least one; their inputs must have distinct names.
        head: The dense layers.
        name: Name of the layer.
        shortcut: Name of a feature whose vector, of length `head.dim`, is added to the output of
            the dense layers (a residual connection; He et al., CVPR 2016, section 3.2); "" for
            none.

    Call args:
        encoded: Name -> tensor, as `encode` returns it.
        training: Whether this is a training step.
        position: None if each row is a query. If several queries share a sequence of events:
            `[num_queries, 2]` int32, the sequence of each query, and how many of its events the
            query reads (`Feature.at`).

    Returns:
        `[batch_size, dim]` or `[num_queries, dim]` float32.

    Raises:
        ValueError: No features, inputs of the same name or with a name that a SavedModel cannot
            have, or an unknown shortcut.

    >>> from twotower.towers.features import Id
    >>> tower = Tower([Id("genre", ["comedy", "drama"], dim=2)], DenseHead((8,), dim=4), "genres")
    >>> tower.embed({"genre": tf.constant(["drama", "comedy", "western"])}).shape.as_list()
    [3, 4]
    """

    def __init__(
        self, features: Sequence[Feature], head: DenseHead, name: str, shortcut: str = ""
    ) -> None:
        super().__init__(name=name)
        names = [spec.name for feature in features for spec in feature.inputs]
        if not features or len(set(map(str.lower, names))) < len(names):
            raise ValueError(
                f"{name}: needs features with distinct inputs, also without capitals; got {names}."
            )
        if unfit := [name for name in names if not is_argument(name)]:
            raise ValueError(
                f"{name}: inputs {unfit} cannot be arguments of a SavedModel. A name has letters, "
                "digits and _, begins with a letter but not with state_, and is neither one of "
                f"{RESERVED}, with capitals or without, nor a Python keyword such as class. Rename "
                "the columns."
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
        """Names of the inputs that have one row for a sequence, not one for each query."""
        sequences = [feature for feature in self.features if feature.is_sequence]
        return frozenset(spec.name for feature in sequences for spec in feature.inputs)

    def index(self, name: str, values: tf.Tensor) -> tf.Tensor:
        """Strings of the input `name`, `[num_values, ...]`, to integers, so that the strings of a
        whole table are looked up only once."""
        return {feature.name: feature for feature in self.features}[name].index(values)

    def encode(self, raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Raw inputs, name -> `[batch_size, ...]` strings or numbers, to dense integers and floats
        under the same names. Uses no weights."""
        encoded = {}
        for feature in self.features:
            encoded |= feature.encode(raw)
        return encoded

    def call(
        self, encoded: dict[str, tf.Tensor], training: bool = False, position: tf.Tensor = None
    ) -> tf.Tensor:
        if position is None:
            parts = [feature(encoded, training=training) for feature in self.features]
        else:
            parts = [feature.at(encoded, position, training) for feature in self.features]
        return self._together(parts, training)

    def _together(self, parts: list[tf.Tensor], training: bool) -> tf.Tensor:
        """The tower's vector `[batch_size, dim]` from the vectors of its features
        `[batch_size, size]`, in their order."""
        named = {feature.name: part for feature, part in zip(self.features, parts)}
        return self.head(tf.concat(parts, 1), named.get(self.shortcut), training=training)

    def begin(self, raw: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Begins a session: from raw inputs to its state and its vector.

        Returns:
            (the state of the history's encoder, name -> `[batch_size, ...]`; `[batch_size, dim]`).
        """
        return self._session(None, self.encode(raw))

    def step(
        self, state: dict[str, tf.Tensor], raw: dict[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """A session's state and vector after one more event.

        Args:
            state: As returned by `begin` or `step`.
            raw: Raw inputs. Those of the history hold the new event alone, `[batch_size]`.
        """
        return self._session(state, self.encode(raw))

    def check(self, state: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Which rows of each part of a session's state are valid, name -> `[batch_size]` bool. Use
        it for states that come back from a caller's store."""
        (history,) = (feature for feature in self.features if hasattr(feature, "step"))
        return history.check(state)

    def _session(self, state: dict[str, tf.Tensor] | None, encoded: dict[str, tf.Tensor]):
        """(state, vector) after the encoded inputs; None for a session that begins."""
        parts = []
        for feature in self.features:
            if not hasattr(feature, "step"):
                parts.append(feature(encoded, training=False))
                continue
            state, part = feature.begin(encoded) if state is None else feature.step(state, encoded)
            parts.append(part)
        return state, self._together(parts, training=False)

    def embed(self, raw: dict[str, tf.Tensor]) -> tf.Tensor:
        """Raw inputs, name -> `[batch_size, ...]`, to vectors `[batch_size, dim]`, as in
        serving."""
        return self(self.encode(raw), training=False)

    def build_weights(self) -> None:
        """Creates all weights, by a call with an empty batch."""
        self.embed(
            {
                spec.name: tf.zeros(
                    [0, *(0 if size is None else size for size in spec.shape)], spec.dtype
                )
                for spec in self.inputs
            }
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments for `from_config`, which makes the same tower with new weights.

        Raises:
            NotImplementedError: The history uses layers of the item tower, so the two towers must
                be made together (`query_tower`).
        """
        for feature in self.features:
            if (
                getattr(feature, "is_shared", False)
                or getattr(feature, "content", None) is not None
            ):
                raise NotImplementedError(
                    f"{self.name}: {feature.name} shares layers with the item tower, so this tower "
                    "cannot be made from its config alone. Make both by twotower.towers.query."
                )
        return {
            "features": [
                tf.keras.saving.serialize_keras_object(feature) for feature in self.features
            ],
            "head": tf.keras.saving.serialize_keras_object(self.head),
            "name": self.name,
            "shortcut": self.shortcut,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Tower":
        """A tower as `get_config` describes it, with new weights."""
        made = tf.keras.saving.deserialize_keras_object
        features = [made(feature) for feature in config["features"]]
        return cls(features, made(config["head"]), config["name"], config["shortcut"])
