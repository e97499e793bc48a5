"""Which candidates are the columns of the score matrix, and how probable each one is there.

In-batch negatives are drawn as the data is: item c stands at a random place of the batch with the
probability p_c of being the item of a random training example. Log-Q needs p_c (`losses.py`).
"""

import numpy as np


def in_batch_probability(
    item_keys: np.ndarray, num_items: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """p_c of every item of the catalogue, from the true counts of the training examples.

    Args:
        item_keys: `[num_examples]` key of each training example's item.
        num_items: Size of the catalogue.
        weights: `[num_examples]`, how often each example is drawn; once by default.

    Returns:
        `[num_items]` float32. An item without an example, which no batch can hold, gets the
        probability of half an example instead of 0, whose logarithm nobody could use.

    Raises:
        ValueError: No examples, or a weight that is negative or not finite.

    >>> in_batch_probability(np.array([0, 0, 0, 2]), 3).tolist()
    [0.75, 0.125, 0.25]
    """
    if len(item_keys) == 0:
        raise ValueError("there are no training examples to count items in.")
    if weights is not None and not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("weights must be finite and not negative.")
    counts = np.bincount(item_keys, weights, minlength=num_items).astype(np.float64)
    total = counts.sum()
    if total == 0:
        raise ValueError("all weights are zero: no example would ever be drawn.")
    return (np.where(counts > 0, counts, 0.5) / total).astype(np.float32)
