"""Power analysis: how many users an A/B test needs, and which effects it can detect."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from twotower.limits import whole_number

# No test has as many users.
MOST_USERS = 2.0**63


def power(deviation: float, effect: float, size: int, level: float = 0.05) -> float:
    """Probability that a two-sided test detects an effect, with `size` users in each variant.

    Args:
        deviation: Standard deviation of the users' values; with CUPED of the adjusted values.
        effect: True difference of the means.
        size: Number of users in each of two variants.
        level: Significance level: share of tests without an effect that report one.

    Raises:
        ValueError: A deviation, size or level out of bounds, or an effect that is not finite.

    >>> round(power(deviation=1.0, effect=0.1, size=1570), 3)
    0.8
    """
    _check_level(deviation, level)
    if not math.isfinite(effect):
        raise ValueError(f"effect must be finite; got {effect}.")
    shift = effect / (deviation * math.sqrt(2 / whole_number(size, "size", 1)))
    bound = -ndtri(level / 2)
    return float(ndtr(shift - bound) + ndtr(-bound - shift))


def sample_size(deviation: float, effect: float, target: float = 0.8, level: float = 0.05) -> int:
    """Number of users that each of two variants needs to detect an effect with power `target`.

        size = 2 * ((z(1 - level / 2) + z(target)) * deviation / effect)^2

    Args:
        deviation: As in `power`.
        effect: The smallest effect to detect.
        target: Probability of detecting it.
        level: As in `power`.

    Raises:
        ValueError: Values out of bounds, or an effect of 0.

    >>> sample_size(deviation=1.0, effect=0.1)
    1570
    """
    _check_level(deviation, level)
    if effect == 0 or not math.isfinite(effect) or not level < target < 1:
        raise ValueError(
            f"effect must not be 0, and target lie within {level} and 1; got {effect}, {target}."
        )
    bounds = -ndtri(level / 2) + ndtri(target)
    with np.errstate(over="ignore"):
        size = 2 * np.square(np.float64(bounds * deviation / effect))
    if not size < MOST_USERS:
        raise ValueError(f"an effect of {effect} beside a deviation of {deviation} is too small.")
    return math.ceil(size)


def power_table(
    deviation: float, effects: Sequence[float], sizes: Sequence[int], level: float = 0.05
) -> np.ndarray:
    """`power` of each effect at each size, `[num_effects, num_sizes]`."""
    return np.array([[power(deviation, e, size, level) for size in sizes] for e in effects])


def _check_level(deviation: float, level: float) -> None:
    if not 0 < deviation < math.inf or not 0 < level < 1:
        raise ValueError(
            f"deviation must be above 0 and level within 0 and 1; got {deviation}, {level}."
        )
