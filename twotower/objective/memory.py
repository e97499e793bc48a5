"""Cross-batch negatives: the item vectors of past examples as further columns.

Cross-batch negative sampling (Wang et al., SIGIR 2021) keeps the item vectors of the last
`memory_size` examples, as they were when they were computed. They push queries away, but get no
gradient themselves. An item is pulled towards a query wherever it is a positive, but pushed away
only where it is a column of this step. So the push would be too weak, by the memory's share of all
draws. The gradient of this step's columns is therefore divided by their own share of all draws. Its
mean is then that of a softmax over all draws.
"""

import numpy as np

from twotower.objective.negatives import (
    Columns,
    Encode,
    Negatives,
    NegativesConfig,
    Pool,
    Targets,
    merged,
)
from twotower.tf import require_one_replica, tf


def scaled_gradient(values: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """`values`, `[n, ...]`, whose gradient is multiplied by `factor`, which broadcasts to them."""
    still = tf.stop_gradient(values)
    return still + (values - still) * factor


class Memory(tf.Module):
    """The item vectors of past examples. New ones overwrite the oldest.

    Args:
        size: Number of vectors.
        dim: Length of a vector.

    >>> memory = Memory(size=3, dim=1)
    >>> memory.put(tf.constant([5, 7]), tf.constant([[0.5], [0.7]]), tf.constant([0.1, 0.2]))
    >>> memory.held()[0].numpy().tolist()  # the keys
    [5, 7, -1]
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(name="memory")
        self.size = size
        self.keys = tf.Variable(tf.fill([size], -1), trainable=False)
        self.vectors = tf.Variable(tf.zeros([size, dim]), trainable=False)
        self.probability = tf.Variable(tf.ones([size]), trainable=False)
        self.next = tf.Variable(0, trainable=False, dtype=tf.int32)

    def held(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """(keys `[size]`, vectors `[size, dim]`, probability of each key `[size]`); the key is -1
        where nothing was put yet."""
        return tuple(v.read_value() for v in (self.keys, self.vectors, self.probability))

    def put(self, keys: tf.Tensor, vectors: tf.Tensor, probability: tf.Tensor) -> None:
        """Adds the examples of a batch. If there are more than `size`, the last ones are kept.

        Args:
            keys: `[num_examples]` int32 keys of their items.
            vectors: `[num_examples, dim]`.
            probability: `[num_examples]`, p_c of each item.
        """
        keys = keys[-self.size :]
        slots = ((self.next + tf.range(tf.size(keys))) % self.size)[:, None]
        self.keys.scatter_nd_update(slots, keys)
        self.vectors.scatter_nd_update(slots, tf.stop_gradient(vectors)[-self.size :])
        self.probability.scatter_nd_update(slots, probability[-self.size :])
        self.next.assign((self.next + tf.size(keys)) % self.size)


class MemoryNegatives(Negatives):
    """`Negatives` with the pool `memory` beside the other pools.

    Args:
        config: As in `Negatives`.
        probability: As in `Negatives`.
        dim: Length of the vectors.

    Raises:
        ValueError: A distribution strategy with several replicas, whose memories would differ.

    A second step has the item of the first one as a column; -1 is an empty one:

    >>> config = NegativesConfig(("batch", "memory"), memory_size=2)
    >>> negatives = MemoryNegatives(config, [0.5, 0.5], dim=1)
    >>> none = tf.zeros([1, 0], tf.int32)
    >>> for item in (0, 1):
    ...     example = Targets(tf.range(1), tf.constant([item]), tf.ones(1), tf.ones(1), {}, none)
    ...     encode = lambda keys: tf.ones([len(keys), 1])
    ...     columns, _ = negatives(example, encode, correction="none", training=True)
    >>> columns.keys.numpy().tolist()
    [0, -1, 1]
    """

    def __init__(self, config: NegativesConfig, probability: np.ndarray, dim: int) -> None:
        super().__init__(config, probability, dim)
        require_one_replica("negatives=memory")
        self.memory = Memory(config.memory_size, dim)

    def pools(self, targets: Targets) -> dict[str, Pool]:
        keys, _, probability = self.memory.held()
        num_held = tf.math.count_nonzero(keys >= 0, dtype=tf.int32)
        held = Pool(keys, tf.ones_like(keys), probability, num_held)
        return {"memory": held, **super().pools(targets)}

    def __call__(
        self, targets: Targets, encode: Encode, correction: str, training: bool = False
    ) -> tuple[Columns, tf.Tensor]:
        drawn = self.draw(targets, correction)
        held = drawn.pop("memory")
        columns, positives = super().encoded(merged([*drawn.values()]), targets.item, encode)
        vectors = self.weighed(columns.vectors, tf.size(targets.item))
        both = Columns(
            tf.concat([held.keys, columns.keys], 0),
            tf.concat([held.log_weight, columns.log_weight], 0),
            tf.concat([self.memory.vectors.read_value(), vectors], 0),
        )
        if training:
            self.memory.put(targets.item, positives, targets.probability)
        return both, positives

    def weighed(self, vectors: tf.Tensor, num_examples: tf.Tensor) -> tf.Tensor:
        """The vectors of this step's columns, `[num_columns, dim]`, whose gradient is divided by
        their share of all draws.

        Args:
            vectors: `[num_columns, dim]`.
            num_examples: Scalar, examples of the batch.
        """
        held = tf.math.count_nonzero(self.memory.keys >= 0, dtype=tf.int32)
        others = self.config.num_shared(num_examples, len(self.keys)) - self.config.memory_size
        share = tf.cast(others, tf.float32) / tf.cast(tf.maximum(others + held, 1), tf.float32)
        return scaled_gradient(vectors, tf.math.reciprocal_no_nan(share))
