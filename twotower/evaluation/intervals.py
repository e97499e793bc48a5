"""95% intervals of means, shares and differences over users. Imports only NumPy."""

import numpy as np

# Half the width of a 95% interval, in standard errors.
Z95 = 1.959964


def interval(
    values: np.ndarray, weights: np.ndarray | None = None, clusters: np.ndarray | None = None
) -> dict:
    """Weighted mean of per-case values with its 95% interval.

    The sample is the users: cases of one user are not independent, so they are one cluster. The
    mean is a ratio of two sums over m clusters, with the linearised variance of a ratio (Cochran,
    Sampling Techniques, 3rd ed., eq. 6.9 and 11.30, without finite population correction):

        mean     = sum(w * v) / sum(w)
        variance = m / (m - 1) * sum_c(sum_{i in c}(w_i * (v_i - mean))^2) / sum(w)^2

    With recall as the values and the numbers of targets as the weights this is `recall_micro`.

    Args:
        values: `[num_cases]`.
        weights: `[num_cases]`; 1 by default.
        clusters: `[num_cases]` int, cases that belong together; by default each case is a cluster.

    Returns:
        `mean`, `low`, `high`; the last two are None for a single cluster, which has no interval.

    Raises:
        ValueError: No values, or weights that sum to 0.
    """
    mean, variance, _ = _moments(values, weights, clusters)
    return normal_interval(mean, variance)


def share_interval(
    values: np.ndarray, weights: np.ndarray | None = None, clusters: np.ndarray | None = None
) -> dict:
    """Weighted mean of shares with its 95% interval, which stays within 0 and 1.

    `interval` takes the standard error at the mean, so that it reaches beyond 0 or 1, and has no
    width where nothing (or everything) was found. This is Wilson's interval (JASA 1927): all true
    shares t that differ from the mean by at most 1.96 standard errors of t. n is the number of
    independent cases with the variance of `interval` (Kott and Carr, Journal of Official Statistics
    1997).

        n = mean * (1 - mean) / variance
        (mean - t)^2 <= 1.96^2 * t * (1 - t) / n

    Args:
        values: `[num_cases]` in [0, 1], such as the recall of each case.
        weights: As in `interval`.
        clusters: As in `interval`.

    Returns:
        As `interval`.

    Raises:
        ValueError: As `interval`; or a value outside [0, 1].
    """
    values = np.asarray(values, float)
    rounding = 1e-9  # a sum of gains over a sum of the same gains in another order
    if not ((values >= -rounding) & (values <= 1 + rounding)).all():
        raise ValueError(
            f"shares lie within 0 and 1; got values from {values.min()} to {values.max()}. "
            "`interval` is for others."
        )
    mean, variance, num_alike = _moments(np.clip(values, 0, 1), weights, clusters)
    mean = min(max(mean, 0.0), 1.0)
    if variance is None or (variance == 0 and 0 < mean < 1):
        return normal_interval(mean, variance)  # a single user; or users that are all alike
    # Where nothing was found, or everything, no variance says how many cases there are.
    n = mean * (1 - mean) / variance if variance > 0 else num_alike
    spread = Z95**2 / n
    middle = (mean + spread / 2) / (1 + spread)
    half = np.sqrt(spread * mean * (1 - mean) + spread**2 / 4) / (1 + spread)
    low, high = max(0.0, float(middle - half)), min(1.0, float(middle + half))
    return {"mean": mean, "low": min(low, mean), "high": max(high, mean)}


def paired_difference(
    values_a: np.ndarray,
    values_b: np.ndarray,
    weights: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    largest: float = np.inf,
) -> dict:
    """Mean of a - b over the same cases, with its 95% interval; arguments as in `interval`.

    Both arrays of values are `[num_cases]`. The interval is cut at `largest`, the largest possible
    difference: 1 for shares. It is much narrower than two separate intervals suggest, because cases
    that are hard for one model are hard for the other. The models differ if it does not contain 0.

    Raises:
        ValueError: Values of different numbers of cases.
    """
    if len(values_a) != len(values_b):
        raise ValueError(
            f"a paired comparison needs the same cases; got {len(values_a)} and {len(values_b)}."
        )
    differences = np.asarray(values_a, float) - np.asarray(values_b, float)
    mean, variance, _ = _moments(differences, weights, clusters)
    return normal_interval(mean, variance, (-largest, largest))


def normal_interval(
    mean: float, variance: float | None, bounds: tuple[float, float] = (-np.inf, np.inf)
) -> dict:
    """The normal interval of a mean, cut at the bounds; open where the variance is None.

    Args:
        mean: The mean.
        variance: Its variance.
        bounds: The least and the largest possible mean.
    """
    if variance is None:
        return {"mean": mean, "low": None, "high": None}
    half = Z95 * float(np.sqrt(variance))
    return {"mean": mean, "low": max(bounds[0], mean - half), "high": min(bounds[1], mean + half)}


def _moments(values, weights, clusters) -> tuple[float, float | None, float]:
    """(mean, its variance, effective number of clusters) of `interval`."""
    values = np.asarray(values, float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    total = weights.sum()
    if not total > 0:
        raise ValueError(f"a mean needs values of positive weight; got {len(values)} values.")
    mean = float((weights * values).sum() / total)
    residuals = weights * (values - mean)
    if clusters is not None:
        _, cluster = np.unique(clusters, return_inverse=True)
        residuals = np.bincount(cluster, weights=residuals)
        weights = np.bincount(cluster, weights=weights)
    num_alike, num_clusters = float(total**2 / (weights**2).sum()), len(residuals)
    if num_clusters < 2:
        return mean, None, num_alike
    variance = num_clusters / (num_clusters - 1) * (residuals**2).sum() / total**2
    return mean, float(variance), num_alike
