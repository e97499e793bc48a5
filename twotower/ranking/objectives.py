"""One score of several heads, with weights that a request may choose. Needs no TensorFlow."""

from collections.abc import Collection, Mapping

import numpy as np


def check_weights(weights: Mapping[str, float], heads: Collection[str]) -> None:
    """Checks the weights of a request.

    Raises:
        ValueError: An unknown head, a weight that is not finite, or weights that are all 0.

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
    if not any(weights.values()):
        raise ValueError(
            f"weights must not all be 0, or all candidates would tie; got {dict(weights)}."
        )


def weighted_score(
    outputs: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    numbers: Collection[str] = (),
) -> np.ndarray:
    """The sum over heads of weight * value: a probability, or the number that a head predicts.

    A negative weight takes candidates down, such as that of a head for complaints. Values and not
    logits are added, so that a weight is what the event is worth and the score what a candidate
    is expected to bring.

    Args:
        outputs: Head -> its outputs, `[...]`.
        weights: Head -> weight; a head that is left out has weight 0.
        numbers: Heads whose outputs are numbers. All others are logits.

    Returns:
        `[...]` float64, larger is better.

    Raises:
        ValueError: See `check_weights`.

    >>> outputs = {"watch": np.array([0.0, 0.0]), "rating": np.array([4.0, 2.0])}
    >>> weighted_score(outputs, {"watch": 2.0, "rating": -1.0}, numbers=("rating",)).tolist()
    [-3.0, -1.0]
    """
    check_weights(weights, outputs)
    total = np.zeros(np.shape(next(iter(outputs.values()))))
    for head, weight in weights.items():
        values = np.asarray(outputs[head], np.float64)
        # Written with tanh, because exp overflows for a large negative logit.
        total += weight * (values if head in numbers else 0.5 + 0.5 * np.tanh(0.5 * values))
    return total
