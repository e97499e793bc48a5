"""One score from several heads, with weights that a request may choose. Needs no TensorFlow."""

from collections.abc import Collection, Mapping

import numpy as np

# Bounds of the absolute value of a weight other than 0. Outside them, sums in float32 are infinite
# or 0, and all candidates would tie.
LEAST, MOST = 1e-9, 1e9


def check_weights(weights: Mapping[str, float], heads: Collection[str]) -> None:
    """Checks the weights of a request.

    Raises:
        ValueError: An unknown head, a weight that is not finite, is too large or too small, or
            weights that are all 0.

    >>> check_weights({"watch": 0.0}, ("watch", "like"))
    Traceback (most recent call last):
    ValueError: weights must not all be 0, or all candidates would tie; got {'watch': 0.0}.
    """
    unknown = sorted(set(weights) - set(heads))
    if unknown:
        raise ValueError(f"no head is called {unknown}; the ranker has {sorted(heads)}.")
    wrong = {name: weight for name, weight in weights.items() if not np.isfinite(weight)}
    if wrong:
        raise ValueError(f"weights must be finite numbers; got {wrong}.")
    sizes = {name: abs(weight) for name, weight in weights.items() if weight}
    if extreme := [name for name, size in sizes.items() if not LEAST <= size <= MOST]:
        raise ValueError(
            f"weights must be 0 or from {LEAST:g} to {MOST:g} in size, only their ratios count; "
            f"got {extreme[0]}={weights[extreme[0]]:g}."
        )
    if not sizes:
        raise ValueError(
            f"weights must not all be 0, or all candidates would tie; got {dict(weights)}."
        )


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits `[...]`, float64 of the same shape."""
    # Written with tanh, because exp overflows for a large negative logit.
    return 0.5 + 0.5 * np.tanh(0.5 * np.asarray(logits, np.float64))


def weighted_sum(values: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The sum over heads of weight * value.

    Values are probabilities, or numbers such as a rating, but not logits. So a weight is the value
    of an event, and the sum is the expected value of a candidate. A negative weight, such as that
    of a head for complaints, lowers the score.

    Args:
        values: Head -> its values, `[...]`.
        weights: Head -> weight; a head that is left out has weight 0.

    Returns:
        `[...]` float64, larger is better.

    Raises:
        ValueError: See `check_weights`.

    >>> values = {"watch": np.array([0.5, 0.5]), "rating": np.array([4.0, 2.0])}
    >>> weighted_sum(values, {"watch": 2.0, "rating": -1.0}).tolist()
    [-3.0, -1.0]
    """
    check_weights(weights, values)
    total = np.zeros(np.shape(next(iter(values.values()))))
    for head, weight in weights.items():
        total += weight * np.asarray(values[head])
    return total
