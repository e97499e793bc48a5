"""Which candidates are the columns of the score matrix, and how probable each one is there.

A pool is a source of columns: it draws items with a known probability Q, which log-Q needs
(`losses.column_log_weight`). Several pools can be mixed, each with its own Q:

    batch       the items of the batch's examples (in-batch negatives). Q is p_c, the share of item
                c among the training examples
    uniform     `num_sampled` draws from the catalogue, each with Q = 1 / N. With `batch` it is the
                mixed negative sampling of Yang et al. (WWW 2020)
    popularity  `num_sampled` draws in proportion to p_c ** power (Mikolov et al. 2013: .75)
    memory      vectors of the last `memory_size` examples, as they were then (cross-batch negative
                sampling, Wang et al., SIGIR 2021). Q is p_c. These vectors push queries and get no
                gradient, so the other columns get more (`Pools.as_columns`)
    catalogue   every item once, so nothing is drawn and nothing needs a correction. All vectors are
                computed at each step. If that takes too long, they are computed only every
                `catalogue_refresh` steps; between them only the vectors of the batch's items are

Here the catalogue is the N items that have a training example. An item without an example can never
be a positive, so as a column it is only ever pushed away: a model that draws such items as
negatives learns to answer no new item at all. `untrained_items` draws them anyway.

All rows share these columns. A query can also have a block of negatives of its own: mined ones
(`mining.py`), and impressions without a click. With `num_hardest` a row keeps only the columns that
score highest.
"""

import dataclasses

import numpy as np

from twotower.limits import at_least, refuse, unread
from twotower.objective.losses import MASKED, column_log_weight
from twotower.tf import tf

POOLS = ("batch", "uniform", "popularity", "memory", "catalogue")


@dataclasses.dataclass(frozen=True)
class NegativesConfig:
    """Which candidates are columns.

    Attributes:
        negatives: The pools, one or more of `POOLS`. `catalogue` goes with no other.
        num_sampled: Draws per batch of `uniform`, and of `popularity`.
        sampled_power: The power of `popularity`. p_c is how often examples of item c are drawn, so
            if stratified sampling draws all items equally often, `popularity` is uniform.
        memory_size: Examples whose item vectors `memory` keeps.
        catalogue_refresh: Steps between two computations of all vectors of `catalogue`. Above 1,
            items outside the batch are columns with old vectors and get no gradient. To make up for
            it, the gradient of an item in the batch is larger the more rarely it is in a batch.
        num_hardest: Columns that a row keeps, those with the highest scores; 0 for all.
        hard_negative_share: Share of a row's negatives that are mined for it (`mining.py`).
        hard_as_draws: Whether a mined negative weighs as much as a draw of the shared columns, and
            not as one item of the catalogue (`losses.block_weight`). Then many of them do harm.
        num_impressions: Further negatives of a row: items that its user was shown and did not take.
        untrained_items: Whether `uniform`, `popularity`, `catalogue` and mined negatives also draw
            items without a training example. The model then learns never to answer them.
    """

    negatives: tuple[str, ...] = ("batch",)
    num_sampled: int = 1024
    sampled_power: float = 0.75
    memory_size: int = 8192
    catalogue_refresh: int = 1
    num_hardest: int = 0
    hard_negative_share: float = 0.0
    hard_as_draws: bool = False
    num_impressions: int = 0
    untrained_items: bool = False

    def __post_init__(self) -> None:
        pools = self.negatives
        if not pools or set(pools) - set(POOLS) or len(set(pools)) < len(pools):
            raise ValueError(f"negatives must be one or more of {POOLS}; got {pools}.")
        if "catalogue" in pools and len(pools) > 1:
            raise ValueError(f"the catalogue holds every item already; got {pools}.")
        if "memory" in pools and ("batch" not in pools or self.has_block):
            raise ValueError(
                "a memory's vectors push queries and learn nothing, which the batch's columns make "
                "up for: it goes with 'batch', and without mined negatives or impressions; got "
                f"{pools}, hard_negative_share {self.hard_negative_share} and num_impressions "
                f"{self.num_impressions}."
            )
        if self.catalogue_refresh > 1 and self.has_block:
            raise ValueError(
                f"catalogue_refresh={self.catalogue_refresh} keeps vectors of the shared columns "
                "only. Take 1, or neither hard_negative_share nor num_impressions."
            )
        least = {"num_sampled": 1, "memory_size": 1, "catalogue_refresh": 1}
        at_least(self, **least, num_hardest=0, num_impressions=0, sampled_power=0)
        if not 0 <= self.hard_negative_share < 1:
            raise ValueError(
                f"hard_negative_share must lie in [0, 1); got {self.hard_negative_share}."
            )
        is_drawn = bool({"uniform", "popularity"} & set(pools))
        refuse(
            [
                *unread(self, is_drawn, "negatives=uniform or popularity", "num_sampled"),
                *unread(self, "popularity" in pools, "negatives=popularity", "sampled_power"),
                *unread(self, "memory" in pools, "negatives=memory", "memory_size"),
                *unread(self, "catalogue" in pools, "negatives=catalogue", "catalogue_refresh"),
                *unread(
                    self,
                    self.has_block,
                    "hard_negative_share or num_impressions",
                    "hard_as_draws",
                ),
            ]
        )

    def num_shared(self, num_examples: int, num_items: int) -> int:
        """Draws of all pools together, besides a row's positive, of `num_items` drawable items."""
        size = {"batch": num_examples - 1, "catalogue": num_items - 1, "memory": self.memory_size}
        return sum(size.get(name, self.num_sampled) for name in self.negatives)

    def num_hard(self, num_shared: int) -> int:
        """Mined negatives of a row beside `num_shared` draws, so that their share is as asked."""
        return round(num_shared * self.hard_negative_share / (1 - self.hard_negative_share))

    @property
    def has_block(self) -> bool:
        """Whether rows have negatives of their own."""
        return self.hard_negative_share > 0 or self.num_impressions > 0


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


def scaled_gradient(values: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """The same values, with their gradient times `factor`, which broadcasts."""
    still = tf.stop_gradient(values)
    return still + (values - still) * factor


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


@dataclasses.dataclass
class Columns:
    """Candidates that all rows of the score matrix share.

    Attributes:
        keys: `[num_columns]` int32, -1 for an empty column.
        log_weight: `[num_columns]`, log w_c.
        vectors: `[num_columns, dim]`; None until they are computed.
    """

    keys: tf.Tensor
    log_weight: tf.Tensor
    vectors: tf.Tensor | None = None

    @staticmethod
    def closed(keys: tf.Tensor) -> "Columns":
        """Columns of these keys, `[num_columns]`, that are masked in every row."""
        return Columns(keys, tf.fill(tf.shape(keys), MASKED))

    def open(self) -> "Columns":
        """The columns that are not masked in every row."""
        keep = self.log_weight > MASKED / 2
        parts = (self.keys, self.log_weight, self.vectors)
        return Columns(*(tf.boolean_mask(part, keep) for part in parts))

    @staticmethod
    def concat(parts: list["Columns"]) -> "Columns":
        """The columns of all parts, one part after another."""
        if len(parts) == 1:
            return parts[0]
        names = [field.name for field in dataclasses.fields(Columns)]
        return Columns(*(tf.concat([getattr(part, name) for part in parts], 0) for name in names))


def merged(parts: list[Columns]) -> Columns:
    """One column for each distinct item of several pools. The weights of equal items are added."""
    if len(parts) == 1:
        return parts[0]
    keys, place = tf.unique(tf.concat([part.keys for part in parts], 0))
    weight = tf.exp(tf.concat([part.log_weight for part in parts], 0))
    total = tf.math.unsorted_segment_sum(weight, place, tf.size(keys))
    return Columns(keys, tf.maximum(tf.math.log(total), MASKED))


class Pools(tf.Module):
    """Draws the columns of a batch from the pools that a config names.

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
        super().__init__(name="pools")
        probability = drawable_probability(probability, config.untrained_items)
        self.config, self.keys = config, np.flatnonzero(probability).astype(np.int32)
        self.samplers = {}
        for name in ("uniform", "popularity"):
            if name in config.negatives:
                q = sampling_probability(name, probability, config.sampled_power)
                self.samplers[name] = Sampler(q, config.num_sampled)
        self.memory = Memory(config.memory_size, dim) if "memory" in config.negatives else None
        self.snapshot = None
        if "catalogue" in config.negatives and config.catalogue_refresh > 1:
            self.snapshot = tf.Variable(tf.zeros([len(self.keys), dim]), trainable=False)

    def __call__(
        self, item: tf.Tensor, probability: tf.Tensor, correction: str, distinct: bool = True
    ) -> dict[str, Columns]:
        """The columns of each pool, by its name.

        Under `log_q_masked` the weights of each pool alone stand for the whole catalogue. So the
        weights of several pools are averaged, in proportion to their draws.

        Args:
            item: `[num_examples]`, keys of the batch's items.
            probability: `[num_examples]`, p_c of each.
            correction: As in `losses.column_log_weight`.
            distinct: Whether equal items of the batch share one column.
        """
        if "catalogue" in self.config.negatives:
            return {"catalogue": Columns(tf.constant(self.keys), tf.zeros([len(self.keys)]))}
        pools, draws = {}, {}
        for name in self.config.negatives:
            vectors = None
            if name == "batch":
                keys, chance, draws[name] = item, probability, tf.size(item) - 1
            elif name == "memory":
                keys, vectors, chance = self.memory.held()
                draws[name] = tf.math.count_nonzero(keys >= 0, dtype=tf.int32)
            else:
                keys = self.samplers[name]()
                chance = tf.gather(self.samplers[name].q, keys)
                draws[name] = tf.size(keys)
            count = tf.ones_like(keys)
            if name != "memory" and (distinct or name != "batch"):
                keys, place, count = tf.unique_with_counts(keys)
                chance = tf.math.unsorted_segment_max(chance, place, tf.size(keys))
            weight = column_log_weight(count, chance, draws[name], correction)
            pools[name] = Columns(keys, tf.where(keys < 0, MASKED, weight), vectors)
        if len(pools) > 1 and correction == "log_q_masked":
            total = tf.cast(tf.maximum(tf.add_n(list(draws.values())), 1), tf.float32)
            for name, pool in pools.items():
                share = tf.maximum(tf.cast(draws[name], tf.float32), 1e-9) / total
                pool.log_weight = tf.maximum(pool.log_weight + tf.math.log(share), MASKED)
        return pools

    def as_columns(self, vectors: tf.Tensor, num_examples: tf.Tensor) -> tf.Tensor:
        """Column vectors of this step, whose gradient is scaled up to make up for the memory.

        An item is pulled wherever it is a positive, but pushed only where it is a column of this
        step, since the vectors of the memory get no gradient. Unscaled, the push would be too weak
        by the memory's share of all draws. Here the gradient is divided by the share of this step's
        draws, so the mean push is that of a softmax over all draws.

        Args:
            vectors: `[num_columns, dim]`.
            num_examples: Examples in the batch.
        """
        if self.memory is None:
            return vectors
        held = tf.math.count_nonzero(self.memory.keys >= 0, dtype=tf.int32)
        others = self.config.num_shared(num_examples, len(self.keys)) - self.config.memory_size
        share = tf.cast(others, tf.float32) / tf.cast(tf.maximum(others + held, 1), tf.float32)
        return scaled_gradient(vectors, tf.math.reciprocal_no_nan(share))


class Memory(tf.Module):
    """The item vectors of past examples (cross-batch memory). The oldest are overwritten first.

    Args:
        size: Number of vectors.
        dim: Length of a vector.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(name="memory")
        self.size = size
        self.keys = tf.Variable(tf.fill([size], -1), trainable=False)
        self.vectors = tf.Variable(tf.zeros([size, dim]), trainable=False)
        self.probability = tf.Variable(tf.ones([size]), trainable=False)
        self.next = tf.Variable(0, trainable=False, dtype=tf.int32)

    def held(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Keys (-1 where the memory is still empty), vectors, and the probability of each key."""
        return tuple(v.read_value() for v in (self.keys, self.vectors, self.probability))

    def put(self, keys: tf.Tensor, vectors: tf.Tensor, probability: tf.Tensor) -> None:
        """Adds a batch: `[num_examples]`, `[num_examples, dim]` and `[num_examples]`. If these are
        more than `size`, the last ones are kept."""
        keys = keys[-self.size :]
        places = ((self.next + tf.range(tf.size(keys))) % self.size)[:, None]
        self.keys.scatter_nd_update(places, keys)
        self.vectors.scatter_nd_update(places, tf.stop_gradient(vectors)[-self.size :])
        self.probability.scatter_nd_update(places, probability[-self.size :])
        self.next.assign((self.next + tf.size(keys)) % self.size)
