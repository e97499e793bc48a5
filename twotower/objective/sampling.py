"""The probability of each item in a batch and in a pool of negatives, and a sampler of items."""

import numpy as np

from twotower.tf import tf


def in_batch_probability(
    item_keys: np.ndarray, num_items: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """p_c, the share of each item among the training examples.

    Args:
        item_keys: `[num_examples]` key of each training example's item.
        num_items: Size of the catalogue.
        weights: `[num_examples]`, how often each example is drawn; once by default.

    Returns:
        `[num_items]` float32 whose sum is 1; 0 for an item without an example.

    Raises:
        ValueError: No examples, a key outside the catalogue, or a weight that is negative or not
            finite.

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
    """p_c of the items that samplers may draw, `[num_items]` float64; 0 for all others.

    Args:
        probability: `[num_items]`, p_c; 0 for an item without a training example.
        untrained_items: Whether such items may be drawn, too. Their p_c is then half that of the
            rarest item that has an example.

    Raises:
        ValueError: A probability that is negative or not finite, or none that is positive.

    >>> drawable_probability([0.75, 0.25, 0.0], untrained_items=True).tolist()
    [0.75, 0.25, 0.125]
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
    """Q of each item in the pool `uniform` or `popularity`, `[num_items]` float32 whose sum is 1.

    Args:
        pool: `uniform` or `popularity`.
        probability: `[num_items]`, as `drawable_probability` returns it. An item of probability 0
            is never drawn.
        power: Power of the probability in `popularity`; `uniform` does not use it.

    >>> sampling_probability("uniform", np.array([0.8, 0.2, 0.0]), 0.75).tolist()
    [0.5, 0.5, 0.0]
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
        q: `[num_items]`, probability of each item. An item of probability 0 is never drawn.
        num_draws: Number of draws.

    >>> Sampler(np.float32([0.0, 1.0]), num_draws=3)().numpy().tolist()
    [1, 1, 1]
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
