"""Which candidates are the columns of the score matrix, and how probable each one is there.

A pool is a source of columns. It draws each item with a known probability Q, which log-Q needs
(`corrections.column_log_weight`). Several pools can be mixed, each with its Q:

    batch       the items of the batch's examples (in-batch negatives). Q is p_c, the share of item
                c among the training examples
    uniform     `num_sampled` draws from the catalogue, each with Q = 1 / N. Together with `batch`
                this is the mixed negative sampling of Yang et al. (WWW 2020)
    popularity  `num_sampled` draws in proportion to p_c ** power; Mikolov et al. (NeurIPS 2013) use
                a power of .75
    catalogue   every item once; nothing is drawn, so there is nothing to correct
    memory      vectors of past examples (`memory.py`)

The catalogue here is the N items that have a training example. An item without an example is never
a positive. As a negative it would only ever be pushed away, and a model that draws such items
learns to recommend no new item at all. `untrained_items` draws them nevertheless.

All rows share these columns. A row can have hard negatives beside them (`hard_negatives.py`). With
`num_hardest` a row keeps only the columns with the highest scores.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from twotower.objective.config import NegativesConfig
from twotower.objective.corrections import MASKED, column_log_weight, column_of_item
from twotower.objective.sampling import Sampler, drawable_probability, sampling_probability
from twotower.tf import tf


class Targets(NamedTuple):
    """The examples of a batch, one after another.

    Attributes:
        row: `[num_examples]` int32, the row of the batch, and so the query, of each example. The
            task also takes None: then query i is that of example i.
        item: `[num_examples]` int32, the key of its item.
        weight: `[num_examples]` float32.
        probability: `[num_examples]` float32, p_c of the item.
        inputs: Time-dependent inputs of the item tower, name -> `[num_examples]`.
        hard_negatives: `[num_rows, h]` int32 keys of each row's hard negatives, padded with -1.

    A batch of one row with two items to find, and no hard negatives:

    >>> none = tf.zeros([1, 0], tf.int32)
    >>> share = tf.constant([0.5, 0.25])
    >>> Targets(tf.zeros(2, tf.int32), tf.constant([3, 4]), tf.ones(2), share, {}, none).item.shape
    TensorShape([2])
    """

    row: tf.Tensor | None
    item: tf.Tensor
    weight: tf.Tensor
    probability: tf.Tensor
    inputs: dict[str, tf.Tensor]
    hard_negatives: tf.Tensor


@dataclasses.dataclass
class Columns:
    """The columns of the score matrix.

    Attributes:
        keys: `[num_columns]` int32 keys of items, -1 for an empty column.
        log_weight: `[num_columns]` float32, log w_c; `[num_rows, num_columns]` if rows differ.
        vectors: `[num_columns, dim]` float32; None until they are computed.
        are_distinct: Whether it is known that no item has two columns and no column is empty.

    >>> parts = [Columns(tf.constant([4, 2]), tf.zeros(2)), Columns(tf.constant([4]), tf.zeros(1))]
    >>> columns = merged(parts)
    >>> columns.keys.numpy().tolist(), tf.exp(columns.log_weight).numpy().tolist()
    ([4, 2], [2.0, 1.0])
    """

    keys: tf.Tensor
    log_weight: tf.Tensor
    vectors: tf.Tensor | None = None
    are_distinct: bool = False


class Pool(NamedTuple):
    """What a pool has drawn.

    Attributes:
        keys: `[num_keys]` int32, distinct; -1 for an empty column.
        count: `[num_keys]` int32, how often each was drawn.
        probability: `[num_keys]` float32, the probability that one draw is this item.
        num_draws: Scalar int32, number of all draws.

    >>> pool = Pool.of(tf.constant([4, 2, 4]), tf.constant([0.5, 0.1, 0.5]), tf.constant(3))
    >>> pool.keys.numpy().tolist(), pool.count.numpy().tolist()
    ([4, 2], [2, 1])
    """

    keys: tf.Tensor
    count: tf.Tensor
    probability: tf.Tensor
    num_draws: tf.Tensor

    @staticmethod
    def of(keys: tf.Tensor, probability: tf.Tensor, num_draws: tf.Tensor) -> "Pool":
        """A pool from its draws.

        Args:
            keys: `[num_drawn]` int32, the item of each draw.
            probability: `[num_drawn]`, the probability of that item.
            num_draws: Scalar int32, number of draws; for the pool `batch` it is `num_drawn` - 1,
                since an example's own item is no draw.
        """
        distinct, which, count = tf.unique_with_counts(keys)
        probability = tf.math.unsorted_segment_max(probability, which, tf.size(distinct))
        return Pool(distinct, count, probability, num_draws)


def merged(parts: list[Columns]) -> Columns:
    """One column for each distinct item of several pools, with the sum of the item's weights."""
    if len(parts) == 1:
        return parts[0]
    keys, which = tf.unique(tf.concat([part.keys for part in parts], 0))
    weight = tf.exp(tf.concat([part.log_weight for part in parts], 0))
    total = tf.math.unsorted_segment_sum(weight, which, tf.size(keys))
    return Columns(keys, tf.maximum(tf.math.log(total), MASKED))


def of_all_replicas(values: tf.Tensor) -> tf.Tensor:
    """`values` of all replicas of a `tf.distribute` strategy, one replica after another.

    Args:
        values: `[n, ...]` of this replica. With one replica they are returned as they are.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_gather(values, axis=0)


# Keys `[n]`, and time-dependent inputs by name, `[n]` each -> vectors `[n, dim]`.
Encode = Callable[..., tf.Tensor]


class Negatives(tf.Module):
    """Draws the columns of a batch from the pools that a config names.

    Under a `tf.distribute` strategy the columns are drawn for the examples of all replicas. Their
    keys are gathered, and each replica computes the vectors of all columns. So only integers are
    sent, and the sum of the replicas' gradients is the gradient of the whole batch.

    Args:
        config: The pools and their sizes.
        probability: `[num_items]`, p_c of each item; 0 for an item without a training example.
        dim: Length of the vectors.

    Attributes:
        keys: `[num_drawable]` int32 keys of the items that may be drawn, ascending.

    Raises:
        ValueError: As in `drawable_probability`.

    >>> Negatives(NegativesConfig(("catalogue",)), np.array([0.5, 0.0, 0.5]), dim=4).keys.tolist()
    [0, 2]
    """

    def __init__(self, config: NegativesConfig, probability: np.ndarray, dim: int) -> None:
        super().__init__(name="negatives")
        self.num_items, self.dim = len(probability), dim
        probability = drawable_probability(probability, config.untrained_items)
        self.config, self.keys = config, np.flatnonzero(probability).astype(np.int32)
        self.samplers = {}
        for name in ("uniform", "popularity"):
            if name in config.negatives:
                q = sampling_probability(name, probability, config.sampled_power)
                self.samplers[name] = Sampler(q, config.num_sampled)

    def __call__(
        self, targets: Targets, encode: Encode, correction: str, training: bool = False
    ) -> tuple[Columns, tf.Tensor]:
        """The columns with their vectors, and the vector of each example's item.

        Args:
            targets: The examples of the batch.
            encode: Keys `[n]` -> vectors of the item tower `[n, dim]`.
            correction: One of `config.CORRECTIONS`.
            training: Whether this is a training step.

        Returns:
            (the columns, the positives' vectors `[num_examples, dim]`).
        """
        columns = merged([*self.draw(targets, correction).values()])
        return self.encoded(columns, targets.item, encode)

    def pools(self, targets: Targets) -> dict[str, Pool]:
        """Draws from each pool but the catalogue, name -> what was drawn."""
        pools = {}
        for name in self.config.negatives:
            if name == "batch":
                item, probability = map(of_all_replicas, (targets.item, targets.probability))
                pools[name] = Pool.of(item, probability, tf.size(item) - 1)
            elif name in self.samplers:
                keys = self.samplers[name]()
                pools[name] = Pool.of(keys, tf.gather(self.samplers[name].q, keys), tf.size(keys))
        return pools

    def draw(self, targets: Targets, correction: str) -> dict[str, Columns]:
        """The columns of each pool without their vectors, name -> columns.

        Under `log_q_masked` the expected sum of the weights of one pool is the size of the
        catalogue. The weights of several pools are therefore averaged, in proportion to their
        draws.
        """
        if "catalogue" in self.config.negatives:
            return {"catalogue": Columns(tf.constant(self.keys), tf.zeros([len(self.keys)]))}
        pools = self.pools(targets)
        total = tf.add_n([pool.num_draws for pool in pools.values()])
        columns = {}
        for name, pool in pools.items():
            weight = column_log_weight(pool.count, pool.probability, pool.num_draws, correction)
            if len(pools) > 1 and correction == "log_q_masked":
                share = tf.cast(pool.num_draws, tf.float32) / tf.cast(
                    tf.maximum(total, 1), "float32"
                )
                weight += tf.math.log(tf.maximum(share, 1e-12))
            # A pool may have empty columns, whose key is -1.
            weight = tf.where(pool.keys < 0, MASKED, tf.maximum(weight, MASKED))
            columns[name] = Columns(pool.keys, weight)
        return columns

    def encoded(
        self, columns: Columns, item: tf.Tensor, encode: Encode
    ) -> tuple[Columns, tf.Tensor]:
        """Computes the vectors of the columns and of the positives, each distinct item once.

        Args:
            columns: Columns with distinct keys.
            item: `[num_examples]` int32, key of each example's item.
            encode: Keys `[n]` -> vectors of the item tower `[n, dim]`.

        Returns:
            (the columns with vectors, the positives' vectors `[num_examples, dim]`).
        """
        keys = tf.unique(tf.concat([columns.keys, item], 0)).y  # the columns' keys come first
        vectors = encode(keys)  # [num_keys, dim]
        positives = tf.gather(vectors, tf.gather(column_of_item(keys, self.num_items), item) - 1)
        vectors = vectors[: tf.size(columns.keys)]
        return dataclasses.replace(columns, vectors=vectors, are_distinct=True), positives
