"""Which candidates are the columns of the score matrix, and how probable each one is there.

A pool is a source of columns. It draws items with a known probability Q, which log-Q needs
(`corrections.column_log_weight`). Several pools can be mixed, each with its own Q:

    batch       the items of the batch's examples (in-batch negatives). Q is p_c, the share of item
                c among the training examples
    uniform     `num_sampled` draws from the catalogue, each with Q = 1 / N. With `batch` it is the
                mixed negative sampling of Yang et al. (WWW 2020)
    popularity  `num_sampled` draws in proportion to p_c ** power (Mikolov et al. 2013: .75)
    catalogue   every item once, so nothing is drawn and nothing needs a correction
    memory      vectors of past examples (`memory.py`)

Here the catalogue is the N items that have a training example. An item without an example can never
be a positive, so as a column it is only ever pushed away: a model that draws such items as
negatives learns to answer no new item at all. `untrained_items` draws them anyway.

All rows share these columns. A query can have hard negatives beside them (`hard_negatives.py`).
With `num_hardest` a row keeps only the columns that score highest.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from twotower.objective.config import NegativesConfig
from twotower.objective.corrections import MASKED, column_log_weight
from twotower.tf import tf


def in_batch_probability(
    item_keys: np.ndarray, num_items: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """p_c of every item of the catalogue, from the true counts of the training examples.

    Args:
        item_keys: `[num_examples]` key of each training example's item.
        num_items: Size of the catalogue.
        weights: `[num_examples]`, how often each example is drawn; once by default.

    Returns:
        `[num_items]` float32 whose sum is 1; 0 for an item without an example, which no batch has.

    Raises:
        ValueError: No examples, a key that is none, or a weight that is negative or not finite.

    >>> in_batch_probability(np.array([0, 0, 0, 2]), 3).tolist()
    [0.75, 0.0, 0.25]
    """
    if len(item_keys) == 0:
        raise ValueError("there are no training examples to count items in.")
    if weights is not None and not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("weights must be finite and not negative.")
    if min(item_keys) < 0 or max(item_keys) >= num_items:
        raise ValueError(f"keys must lie in [0, {num_items}); got up to {max(item_keys)}.")
    counts = np.bincount(item_keys, weights, minlength=num_items).astype(np.float64)
    total = counts.sum()
    if total == 0:
        raise ValueError("all weights are zero: no example would ever be drawn.")
    return (counts / total).astype(np.float32)


def drawable_probability(probability: np.ndarray, untrained_items: bool = False) -> np.ndarray:
    """p_c of the items that samplers may draw, `[num_items]` float64, 0 for all others.

    Args:
        probability: `[num_items]`, p_c; 0 for an item without a training example.
        untrained_items: Whether such items may be drawn as well. They then count as half as likely
            as the rarest item that has an example.

    Raises:
        ValueError: Probabilities that are negative or not finite, or none that is positive.
    """
    probability = np.asarray(probability, np.float64)
    is_trained = probability > 0
    if not (np.isfinite(probability).all() and (probability >= 0).all() and is_trained.any()):
        raise ValueError(
            "expected the probability of each item in a batch, finite, not negative, and positive "
            f"for one item or more; got values from {probability.min(initial=np.inf)} to "
            f"{probability.max(initial=-np.inf)}. in_batch_probability gives such."
        )
    rare = probability[is_trained].min() / 2 if untrained_items else 0.0
    return np.where(is_trained, probability, rare)


def sampling_probability(pool: str, probability: np.ndarray, power: float) -> np.ndarray:
    """Q of each item in `uniform` or `popularity`, `[num_items]` float32 whose sum is 1.

    Args:
        pool: `uniform` or `popularity`.
        probability: `[num_items]`, as `drawable_probability` returns it; 0 stays 0.
        power: Only `popularity` reads it.
    """
    q = np.zeros(len(probability))
    is_drawn = np.asarray(probability) > 0
    q[is_drawn] = np.asarray(probability, np.float64)[is_drawn] ** (
        power if pool == "popularity" else 0.0
    )
    return (q / q.sum()).astype(np.float32)


class Sampler:
    """Draws items with replacement, inside the graph.

    Args:
        q: `[num_items]`, probability of each item; an item of probability 0 is never drawn.
        num_draws: Draws a batch.
    """

    def __init__(self, q: np.ndarray, num_draws: int) -> None:
        self.q, self.num_draws = tf.constant(q, tf.float32), num_draws
        keys = np.flatnonzero(q)
        self._keys = tf.constant(keys, tf.int32)
        # float64, because float32 sums cannot tell the last items of a large catalogue apart.
        self._cumulative = tf.constant(np.cumsum(np.asarray(q, np.float64)[keys]))

    def __call__(self) -> tf.Tensor:
        """Keys, `[num_draws]` int32."""
        draw = tf.random.uniform([self.num_draws], dtype=tf.float64) * self._cumulative[-1]
        found = tf.searchsorted(self._cumulative, draw, side="right")
        return tf.gather(self._keys, tf.minimum(found, tf.size(self._keys) - 1))


class Targets(NamedTuple):
    """The examples of a batch, one after another.

    Attributes:
        row: `[num_examples]` int32, the row of the batch that each example is of.
        item: `[num_examples]` int32, the key of its item.
        weight: `[num_examples]` float32.
        probability: `[num_examples]` float32, p_c of the item.
        inputs: Time-dependent inputs of the item tower, name -> `[num_examples]`.
        hard_negatives: `[num_rows, h]` int32 keys of each row's hard negatives, -1 behind the last.
    """

    row: tf.Tensor
    item: tf.Tensor
    weight: tf.Tensor
    probability: tf.Tensor
    inputs: dict[str, tf.Tensor]
    hard_negatives: tf.Tensor


@dataclasses.dataclass
class Columns:
    """Candidates that all rows of the score matrix share.

    Attributes:
        keys: `[num_columns]` int32, -1 for an empty column.
        log_weight: `[num_columns]`, log w_c; or `[num_rows, num_columns]` where rows differ.
        vectors: `[num_columns, dim]`; None until they are computed.
    """

    keys: tf.Tensor
    log_weight: tf.Tensor
    vectors: tf.Tensor | None = None


class Pool(NamedTuple):
    """What a pool has drawn: distinct `keys`, how often each (`count`), the `probability` of a draw
    to be it, all `[num_keys]`, and the scalar number of draws."""

    keys: tf.Tensor
    count: tf.Tensor
    probability: tf.Tensor
    num_draws: tf.Tensor

    @staticmethod
    def of(keys: tf.Tensor, probability: tf.Tensor, num_draws: tf.Tensor) -> "Pool":
        """From the keys of all draws and the probability of each, `[num_draws]` both."""
        distinct, which, count = tf.unique_with_counts(keys)
        probability = tf.math.unsorted_segment_max(probability, which, tf.size(distinct))
        return Pool(distinct, count, probability, num_draws)


def merged(parts: list[Columns]) -> Columns:
    """One column for each distinct item of several pools. The weights of equal items are added."""
    if len(parts) == 1:
        return parts[0]
    keys, which = tf.unique(tf.concat([part.keys for part in parts], 0))
    weight = tf.exp(tf.concat([part.log_weight for part in parts], 0))
    total = tf.math.unsorted_segment_sum(weight, which, tf.size(keys))
    return Columns(keys, tf.maximum(tf.math.log(total), MASKED))


def of_all_replicas(values: tf.Tensor) -> tf.Tensor:
    """The rows of all replicas of a `tf.distribute` strategy, one replica after another; without a
    strategy, `values` as they are."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_gather(values, axis=0)


# Keys `[n]`, and time-dependent inputs by name, `[n]` each -> vectors `[n, dim]`.
Encode = Callable[..., tf.Tensor]


class Negatives(tf.Module):
    """Draws the columns of a batch from the pools that a config names.

    Under a `tf.distribute` strategy the batch is that of all replicas: their keys are gathered, and
    each replica computes the vectors of all columns. Only integers travel, and the sum of the
    replicas' gradients is the gradient of the whole batch.

    Args:
        config: Names the pools, with their sizes.
        probability: `[num_items]`, p_c of each item; 0 for one without a training example.
        dim: Length of the vectors.

    Attributes:
        keys: `[num_drawable]` int32, the items that may be drawn, ascending.

    Raises:
        ValueError: As in `drawable_probability`.
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
            encode: The item tower over keys.
            correction: One of `corrections.CORRECTIONS`.
            training: Whether this is a training step.

        Returns:
            (columns, `[num_examples, dim]`).
        """
        columns = merged([*self.draw(targets, correction).values()])
        return self.encoded(columns, targets.item, encode)

    def pools(self, targets: Targets) -> dict[str, Pool]:
        """What each pool but the catalogue has drawn, by its name."""
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
        """The columns of each pool, by its name, without vectors.

        Under `log_q_masked` the weights of each pool alone stand for the whole catalogue. So the
        weights of several pools are averaged, in proportion to their draws.
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
        """Distinct columns with their vectors, and the vector of each example's item.

        The item tower is called once, over each distinct item once.
        """
        keys = tf.unique(tf.concat([columns.keys, item], 0)).y  # the columns' keys come first
        vectors = encode(keys)  # [num_keys, dim]
        number = tf.scatter_nd(keys[:, None], tf.range(tf.size(keys)), [self.num_items])
        positives = tf.gather(vectors, tf.gather(number, item))
        vectors = vectors[: tf.size(columns.keys)]
        return dataclasses.replace(columns, vectors=vectors), positives
