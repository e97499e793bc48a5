"""Ranker: a Keras network that gives each candidate an output for each head."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twotower.ranking.config import RankerConfig
from twotower.ranking.inputs import NUMBERS, POSITION, RankerInputs
from twotower.ranking.interactions import KINDS
from twotower.ranking.multi_task import BOTTOMS
from twotower.ranking.position import PositionBias
from twotower.tf import tf

# A number further from its mean than so many deviations counts as that far: products of cross
# layers would carry it much further.
FURTHEST = 5.0


@tf.keras.saving.register_keras_serializable("twotower")
class KnownRows(tf.keras.initializers.RandomNormal):
    """Small normal numbers, and zeros in row 0, that of unknown values.

    If training has no unknown value, nothing trains that row and it stays zero.
    """

    def __init__(self) -> None:
        super().__init__(stddev=0.01)

    def __call__(self, shape, dtype=None, **kwargs: Any) -> tf.Tensor:
        rows = super().__call__(shape, dtype, **kwargs)
        return tf.concat([tf.zeros_like(rows[:1]), rows[1:]], 0)

    def get_config(self) -> dict[str, Any]:
        return {}


@tf.keras.saving.register_keras_serializable("twotower")
class Ranker(tf.keras.Model):
    """A network that gives each candidate an output for each head.

    All weights exist after construction. Any leading dimensions will do: `[num_rows]` in
    training, `[num_queries, num_candidates]` for lists.

    Args:
        inputs: The features, with the means and deviations of the numbers.
        config: Architecture and sizes of the network.
        heads: Names of the outputs. The loss decides whether an output is a logit or a number
            (`masked_loss`).

    Call args:
        columns: Name -> `[..., *shape]` for each of `inputs.shapes`. If the config has positions,
            also `position`, int32 `[...]`: 1 for the first, 0 for unknown. Give it in training and
            leave it out in serving.

    Call returns:
        Head -> float32 `[...]`.

    Raises:
        ValueError: No heads, or names that are empty or occur twice; `batch_norm` under a
            distribution strategy with several replicas; from a call, inputs that are missing.

    >>> from twotower.ranking.inputs import Field
    >>> ranker = make_ranker(RankerInputs((Field("item", 3),)), RankerConfig(hidden=(4,)))
    >>> ranker({"item": tf.constant([[1, 2, 0]])})["relevance"].shape.as_list()
    [1, 3]
    """

    def __init__(
        self, inputs: RankerInputs, config: RankerConfig, heads: Sequence[str] = ("relevance",)
    ) -> None:
        super().__init__(name="ranker")
        heads = tuple(heads)
        if not heads or len(set(heads)) < len(heads) or not all(map(str.isidentifier, heads)):
            raise ValueError(
                f"a ranker needs one head or more, each with a name of letters that occurs once; "
                f"got {list(heads)}."
            )
        self.inputs_read, self.config, self.heads = inputs, config, heads
        kind = KINDS[config.interaction]
        self.tables = {
            field.name: tf.keras.layers.Embedding(
                field.size + 1,
                config.dim + kind.extra_dim,
                embeddings_initializer=KnownRows(),
                embeddings_regularizer=tf.keras.regularizers.L2(config.l2) if config.l2 else None,
                name=field.name,
            )
            for field in inputs.fields
        }
        self.interaction = kind(config)
        self.bottom = BOTTOMS[config.tasks](config, heads)
        self.outputs_of = {head: tf.keras.layers.Dense(1, name=head) for head in heads}
        if config.positions:
            self.position_bias = PositionBias(config.positions, heads, config.position_dropout)
        rows = {name: np.zeros((1, *shape), np.int32) for name, shape in inputs.shapes.items()}
        if inputs.numbers:
            rows[NUMBERS] = rows[NUMBERS].astype(np.float32)
        if config.positions:
            rows[POSITION] = np.zeros(1, np.int32)
        self({name: tf.constant(row) for name, row in rows.items()})

    def vectors(self, columns: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The embedding of each field, `[n, num_fields, dim]`; for a set, their mean."""
        found = []
        for field in self.inputs_read.fields:
            codes = tf.reshape(tf.cast(columns[field.name], tf.int32), [-1, *field.shape])
            vectors = self.tables[field.name](codes)
            if field.shape:
                known = tf.cast(codes > 0, tf.float32)[:, :, None]  # [n, width, 1]
                count = tf.maximum(tf.reduce_sum(known, 1), 1)
                vectors = tf.reduce_sum(vectors * known, 1) / count
            found.append(vectors)
        return tf.stack(found, 1)

    def standardised(self, numbers: tf.Tensor) -> tf.Tensor:
        """Standardised numbers, and a flag for each number that is unknown.

        Returns:
            `[n, 2 * num_numbers]`.
        """
        inputs, count = self.inputs_read, len(self.inputs_read.numbers)
        values = tf.reshape(tf.cast(numbers, tf.float32), [-1, count])
        known = tf.math.is_finite(values)
        means = np.array(inputs.means or [0.0] * count, np.float32)
        deviations = np.array(inputs.deviations or [1.0] * count, np.float32)
        values = tf.where(known, (values - means) / deviations, tf.zeros_like(values))
        values = tf.clip_by_value(values, -FURTHEST, FURTHEST)
        return tf.concat([values, tf.cast(~known, tf.float32)], 1)

    def call(
        self, columns: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        shapes = self.inputs_read.shapes
        absent = sorted(set(shapes) - set(columns))
        if absent:
            raise ValueError(f"the ranker needs the inputs {absent}; got {sorted(columns)}.")
        name, shape = next(iter(shapes.items()))
        first = tf.convert_to_tensor(columns[name])
        rank = first.shape.rank - len(shape)  # of the leading dimensions
        vectors = self.vectors(columns) if self.inputs_read.fields else None
        numbers = self.standardised(columns[NUMBERS]) if self.inputs_read.numbers else None
        if vectors is None:
            vectors = tf.zeros([tf.shape(numbers)[0], 0, self.config.dim])
        if numbers is None:
            numbers = tf.zeros([tf.shape(vectors)[0], 0])
        features, term = self.interaction((vectors, numbers), training=training)
        states = self.bottom(features, training=training)
        logits = {head: (self.outputs_of[head](states[head]) + term)[:, 0] for head in self.heads}
        if POSITION in columns and self.config.positions:
            position = tf.reshape(columns[POSITION], [-1])
            bias = self.position_bias(position, training=training)
            logits = {head: logits[head] + bias[head] for head in self.heads}
        return {
            head: tf.ensure_shape(tf.reshape(logit, tf.shape(first)[:rank]), first.shape[:rank])
            for head, logit in logits.items()
        }

    def get_config(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs_read.to_json(),
            "config": dataclasses.asdict(self.config),
            "heads": list(self.heads),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Ranker":
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in config["config"].items()
        }
        inputs = RankerInputs.from_json(config["inputs"])
        return cls(inputs, RankerConfig(**values), config["heads"])


def make_ranker(
    inputs: RankerInputs, config: RankerConfig, heads: Sequence[str] = ("relevance",)
) -> Ranker:
    """A ranker with fresh weights; see `Ranker`."""
    return Ranker(inputs, config, heads)
