"""Off-policy estimates: the reward of another policy, estimated from the log of the one that ran.

For each request, a log has what was shown, its reward, and the probability with which it was shown
(the column `propensity` of a bandit). `Logged` adds the probability with which the other policy,
the target, would have shown the same. With weight = probability / propensity:

    IPS            mean(weight * reward)                             no bias, wide interval
    SNIPS          sum(weight * reward) / sum(weight)                little bias, narrower
    direct method  mean(expected)                                    the model's bias
    doubly robust  mean(expected + weight * (reward - predicted))    no bias, narrow

`predicted` is a model's prediction of the reward of what was shown. `expected` is the mean of its
predictions over what the target would show. `reward_models` fits such models by cross-fitting: no
row is predicted by a model that was fitted on it.

Effects beyond the request are out of scope: if a list changes what a user does tomorrow, estimating
this needs reinforcement learning over sessions (SlateQ: Ie et al., IJCAI 2019). `item_positions`
assumes that the reward of an item depends only on its position, and not on the other items of its
list. Wait until late rewards are in the log.
"""

import dataclasses

import numpy as np

from twotower.evaluation.intervals import Z95, interval

# Samples of a bootstrap, and cells of a table [samples, clusters] that is drawn at once.
SAMPLES, CELLS = 1000, 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Logged:
    """A log, with the target policy's probabilities.

    Attributes:
        rewards: `[n]`, the reward of what was shown.
        propensities: `[n]`, probability with which it was shown, in (0, 1].
        probabilities: `[n]`, probability with which the target would show it, in [0, 1].
        clusters: `[n]` int, the same for rows that belong together, such as those of one user.
            Intervals treat clusters as the independent samples; by default each row is a cluster.

    Raises:
        ValueError: No rows, columns of different lengths, NaN, or probabilities out of bounds.

    >>> logged = Logged(np.array([1.0, 0.0]), np.array([0.5, 0.8]), np.array([0.25, 0.4]))
    >>> logged.weights.tolist(), ips(logged)["mean"], snips(logged)["mean"]
    ([0.5, 0.5], 0.25, 0.5)
    """

    rewards: np.ndarray
    propensities: np.ndarray
    probabilities: np.ndarray
    clusters: np.ndarray | None = None

    def __post_init__(self) -> None:
        num = len(np.atleast_1d(self.rewards))
        _check_clusters(self.clusters, num)
        for name in ("rewards", "propensities", "probabilities"):
            object.__setattr__(self, name, _values(getattr(self, name), name, num))
        if not (self.propensities > 0).all():
            raise ValueError(
                f"{int((self.propensities <= 0).sum())} of {num} propensities are 0 or less, so "
                "these rows cannot have been shown. Log the column `propensity` of what was shown."
            )
        for name in ("propensities", "probabilities"):
            values = getattr(self, name)
            if values.min() < 0 or values.max() > 1:
                raise ValueError(
                    f"{name} must lie within 0 and 1; got {values.min()} to {values.max()}."
                )
        with np.errstate(over="ignore"):
            too_large = ~np.isfinite((self.probabilities / self.propensities) ** 2)
        if too_large.any():
            raise ValueError(
                f"{int(too_large.sum())} of {num} propensities are so small that their weights "
                f"overflow; the least is {self.propensities.min():g}. Log a policy that explores."
            )

    @property
    def weights(self) -> np.ndarray:
        """Importance weights, `[n]`: how many rows of the target's log a row stands for.

        Raises:
            ValueError: All are 0, so the log has no information on the target.
        """
        weights = self.probabilities / self.propensities
        if not weights.any():
            raise ValueError(
                f"all {len(weights)} weights are 0: the target shows nothing of what was logged, "
                "so the log says nothing of it. Log a policy that explores."
            )
        return weights

    @property
    def effective_size(self) -> float:
        """Effective sample size (Kish): sum(weights)^2 / sum(weights^2). About so many rows of the
        target's own log have the same information. If it is small, do not trust the intervals."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())


def ips(logged: Logged, bootstrap: bool = False, seed: int = 0) -> dict:
    """Inverse propensity scoring (Horvitz and Thompson, JASA 1952).

    Args:
        logged: The log.
        bootstrap: Whether to compute the interval by the studentised bootstrap
            (`bootstrap_interval`) and not by the normal distribution. In short logs, where few rows
            have large weights, its coverage is better for IPS and SNIPS, and worse for the doubly
            robust estimate.
        seed: Seed of the bootstrap.

    Returns:
        `mean`, and `low` and `high` of its 95% interval; these are None for a single cluster.
    """
    return _estimate(logged.weights * logged.rewards, None, logged.clusters, bootstrap, seed)


def snips(logged: Logged, bootstrap: bool = False, seed: int = 0) -> dict:
    """Self-normalised IPS (Swaminathan and Joachims, NIPS 2015); arguments as in `ips`.

    If a number is added to all rewards, the estimate grows by that number, which does not hold for
    IPS. The estimate lies within the range of the logged rewards.
    """
    return _estimate(logged.rewards, logged.weights, logged.clusters, bootstrap, seed)


def direct_method(
    expected: np.ndarray,
    clusters: np.ndarray | None = None,
    bootstrap: bool = False,
    seed: int = 0,
) -> dict:
    """The mean of a reward model's expected rewards; other arguments as in `ips`.

    Its interval assumes that the model is right: it covers the variation between requests, and not
    the model's bias. If the model is wrong, it seldom contains the truth.

    Args:
        expected: `[n]`, the model's mean reward of what the target would show.
        clusters: As in `Logged`.
        bootstrap: As in `ips`.
        seed: As in `ips`.

    Raises:
        ValueError: No rows, or NaN.
    """
    expected = _values(expected, "expected", len(np.atleast_1d(expected)))
    return _estimate(expected, None, clusters, bootstrap, seed)


def doubly_robust(
    logged: Logged,
    predicted: np.ndarray,
    expected: np.ndarray,
    bootstrap: bool = False,
    seed: int = 0,
) -> dict:
    """Doubly robust (Dudík, Langford and Li, ICML 2011); other arguments as in `ips`.

    It is unbiased if the propensities are right or the model is, whichever holds. A good model
    makes the interval narrow. With a model that predicts 0 it is IPS.

    Args:
        logged: The log.
        predicted: `[n]`, the model's reward of what was shown.
        expected: `[n]`, the model's mean reward of what the target would show.
        bootstrap: As in `ips`.
        seed: As in `ips`.

    Raises:
        ValueError: Arrays of other lengths, or NaN.
    """
    predicted = _values(predicted, "predicted", len(logged.rewards))
    expected = _values(expected, "expected", len(logged.rewards))
    values = expected + logged.weights * (logged.rewards - predicted)
    return _estimate(values, None, logged.clusters, bootstrap, seed)


def item_positions(
    rewards: np.ndarray,
    propensities: np.ndarray,
    probabilities: np.ndarray,
    clusters: np.ndarray | None = None,
    bootstrap: bool = False,
    seed: int = 0,
) -> dict:
    """IPS of whole lists by item and position (Li et al., KDD 2018): a list's mean sum of rewards.

    Each item has the importance weight of its position. One weight for the whole list would be a
    product over its positions, and its variance would grow with the length. The estimate is
    unbiased if the reward of an item depends on its position and not on the other items. This does
    not hold if users stop reading after a click.

    Args:
        rewards: `[num_lists, k]`.
        propensities: `[num_lists, k]`, probability of this item at this position, in (0, 1].
        probabilities: `[num_lists, k]`, the same of the target.
        clusters: `[num_lists]`; by default each list is a cluster.
        bootstrap: As in `ips`.
        seed: As in `ips`.

    Raises:
        ValueError: As `Logged`, or arrays of other shapes. A short list is filled up with rewards
            of 0, propensities of 1 and probabilities of 0.
    """
    shape = np.shape(rewards)
    if len(shape) != 2 or shape != np.shape(propensities) or shape != np.shape(probabilities):
        raise ValueError(
            "expected three arrays [num_lists, k]; got "
            f"{shape}, {np.shape(propensities)} and {np.shape(probabilities)}."
        )
    flat = Logged(*(np.ravel(values) for values in (rewards, propensities, probabilities)))
    values = (flat.weights * flat.rewards).reshape(shape).sum(1)
    return _estimate(values, None, clusters, bootstrap, seed)


def bootstrap_interval(
    values: np.ndarray,
    weights: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> dict:
    """Weighted mean with the 95% interval of the studentised bootstrap (bootstrap-t).

    Efron and Tibshirani, An Introduction to the Bootstrap, section 12.5. Draws 1,000 samples of
    clusters with replacement, and computes the mean and its standard error for each. So it
    estimates the distribution of t, which need not be normal. For skewed values the interval is
    asymmetric. Where so many samples have equal values that t has no bounds, as in a log with one
    reward, the normal interval is returned:

        t = (mean of the sample - mean) / standard error of the sample
        interval = mean - [97.5th, 2.5th percentile of t] * standard error

    Args:
        values: As in `intervals.interval`, whose standard error is used.
        weights: As there.
        clusters: As there.
        seed: Of the samples.

    Raises:
        ValueError: No values, or weights that sum to 0.
    """
    _check_clusters(clusters, len(np.atleast_1d(values)))
    normal = interval(values, weights, clusters)
    if normal["low"] is None or normal["low"] == normal["high"]:
        return normal
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    top, bottom = weights * (values - normal["mean"]), weights
    if clusters is not None:
        _, cluster = np.unique(clusters, return_inverse=True)
        top, bottom = (np.bincount(cluster, weights=part) for part in (top, bottom))
    num, rng = len(top), np.random.default_rng(seed)
    # All that a mean and its standard error need are sums over the sample.
    parts = np.stack([top, bottom, top**2, top * bottom, bottom**2], axis=1)
    found = []
    step = max(1, CELLS // num)
    for start in range(0, SAMPLES, step):
        row = np.arange(min(step, SAMPLES - start))[:, None]
        drawn = rng.integers(num, size=(len(row), num)) + num * row
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        total, size, squares, products, sizes = (times @ parts).T
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / size
            squared = squares - 2 * mean * products + mean**2 * sizes
            # A sample of equal values has no error but that of rounding, and t has no bound.
            squared = np.where(squared > 1e-12 * (squares + mean**2 * sizes), squared, 0)
            found.append(mean / np.sqrt(num / (num - 1) * squared / size**2))
    t = np.concatenate(found)
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(t[~np.isnan(t)], [2.5, 97.5])
    if not np.isfinite([low, high]).all():
        return normal
    error = (normal["high"] - normal["mean"]) / Z95
    mean = normal["mean"]
    return {"mean": mean, "low": float(mean - high * error), "high": float(mean - low * error)}


def _estimate(values, weights, clusters, bootstrap: bool, seed: int) -> dict:
    _check_clusters(clusters, len(values))
    if bootstrap:
        return bootstrap_interval(values, weights, clusters, seed)
    return interval(values, weights, clusters)


def _check_clusters(clusters: np.ndarray | None, num: int) -> None:
    if clusters is not None and np.shape(clusters) != (num,):
        raise ValueError(f"clusters must be [{num}]; got {[*np.shape(clusters)]}.")


def _values(values: np.ndarray, name: str, num: int) -> np.ndarray:
    """Finite float64 `[num]`."""
    found = np.asarray(values, np.float64)
    if found.shape != (num,) or not num:
        raise ValueError(
            f"expected {name} [n] with n = {num}, 1 or more; got {[*found.shape]}."
            + (" The log is empty." if not num else "")
        )
    if not np.isfinite(found).all():
        raise ValueError(
            f"{int((~np.isfinite(found)).sum())} of {num} {name} are NaN or infinite. Where a "
            "policy cannot say a propensity, its log cannot be used."
        )
    return found
