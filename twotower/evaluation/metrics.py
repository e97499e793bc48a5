"""Metrics from the ranks of targets, and their 95% intervals. Numpy only, no package imports.

A metric of accuracy needs only the rank of each target in an answer. `target_ranks` computes the
ranks and handles ties; each metric after it is a line of arithmetic over ranks.
"""

import dataclasses

import numpy as np

# Lengths of answers that are reported, and the depth of the reciprocal rank.
KS = (10, 20, 50, 100, 200, 500)
MRR_AT = 500

# Rank of a target that is not in the answer, or that may be past its end.
NOT_FOUND = np.iinfo(np.int64).max

# Half the width of a 95% interval, in standard errors.
Z95 = 1.959964


@dataclasses.dataclass(frozen=True)
class TargetRanks:
    """Where the targets of each case stand in its answer.

    Attributes:
        ranks: `[num_targets]` int64, 1 for the first item, `NOT_FOUND` for none.
        offsets: `[num_cases + 1]`; the targets of case `i` are `offsets[i]:offsets[i + 1]`.

    >>> found = TargetRanks(np.array([1, 5, 2]), np.array([0, 2, 3]))  # two targets and one
    >>> recall(found, k=2).tolist()
    [0.5, 1.0]
    """

    ranks: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of targets of each case, `[num_cases]`."""
        return np.diff(self.offsets)

    @property
    def case(self) -> np.ndarray:
        """The case of each target, `[num_targets]`."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` `[num_targets]` over the targets of each case, `[num_cases]`."""
        return np.bincount(self.case, weights=values, minlength=len(self.offsets) - 1)

    def only(self, chosen: np.ndarray) -> tuple["TargetRanks", np.ndarray]:
        """Ranks as if only some of the targets had been asked for.

        Args:
            chosen: `[num_targets]` bool.

        Returns:
            Their ranks, and the cases that have one, ascending; others are left out.

        >>> found = TargetRanks(np.array([1, 5, 2]), np.array([0, 2, 3]))
        >>> some, cases = found.only(np.array([False, True, False]))
        >>> some.ranks.tolist(), some.offsets.tolist(), cases.tolist()
        ([5], [0, 1], [0])
        """
        cases, lengths = np.unique(self.case[chosen], return_counts=True)
        return TargetRanks(self.ranks[chosen], np.append(0, np.cumsum(lengths))), cases


def target_ranks(
    keys: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray,
    target_keys: np.ndarray,
    target_offsets: np.ndarray,
    asked: int,
) -> TargetRanks:
    """Ranks of targets, each one last among the items of equal score.

    A model that gives every item the same score knows nothing, and must not get a good metric from
    the order of the catalogue. So inside a tie the targets come after all other items. A tie at the
    end of a full answer may continue past it, so its targets are not found: ask for one item more
    than the largest k of interest.

    Args:
        keys: `[num_cases, k]` item keys, best first.
        scores: `[num_cases, k]`, descending.
        counts: `[num_cases]`, how many columns of each row are filled.
        target_keys: `[num_targets]`, case after case, no key twice in a case.
        target_offsets: `[num_cases + 1]`.
        asked: How many items were asked for. A row with fewer has all that can be answered.

    >>> target_ranks(np.array([[5, 3, 8]]), np.array([[2.0, 1.0, 1.0]]), np.array([3]),
    ...              np.array([3]), np.array([0, 1]), asked=4).ranks.tolist()
    [3]
    """
    ranks = np.full(len(target_keys), NOT_FOUND)
    found = TargetRanks(ranks, np.asarray(target_offsets))
    if keys.size == 0 or len(target_keys) == 0:
        return found
    valid = np.arange(keys.shape[1]) < counts[:, None]
    # One number for (case, key); a small range lets np.isin work with a table.
    base = np.int64(max(keys.max(), target_keys.max()) + 1)
    wanted = target_keys + found.case * base
    got = np.where(valid, keys, 0) + np.arange(len(keys))[:, None] * base
    hits = np.isin(got, wanted) & valid
    order = np.argsort(wanted, kind="stable")
    row, column = np.nonzero(hits)
    target = order[np.searchsorted(wanted[order], got[row, column])]
    # end[i, c]: the column after the last item that has the score of column c.
    last = np.ones(keys.shape, bool)
    last[:, :-1] = (scores[:, 1:] != scores[:, :-1]) | ~valid[:, 1:]
    ends = np.where(last, np.arange(1, keys.shape[1] + 1), keys.shape[1])
    end = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1][row, column]
    # The targets of a tie come at its end, one after the other.
    so_far = np.cumsum(hits, axis=1)
    behind = so_far[row, end - 1] - so_far[row, column]
    certain = (end < counts[row]) | (counts[row] < asked)
    ranks[target[certain]] = (end - behind)[certain]
    return found


def recall(ranks: TargetRanks, k: int) -> np.ndarray:
    """Share of a case's targets among the first k, `[num_cases]`."""
    return ranks.sum(ranks.ranks <= k) / np.maximum(ranks.lengths, 1)


def hit_rate(ranks: TargetRanks, k: int) -> np.ndarray:
    """1 where any target stands among the first k, else 0, `[num_cases]`."""
    return (ranks.sum(ranks.ranks <= k) > 0).astype(float)


def precision(ranks: TargetRanks, k: int) -> np.ndarray:
    """Share of the first k items that are targets, `[num_cases]`; a short row counts as k."""
    return ranks.sum(ranks.ranks <= k) / k


def ndcg(ranks: TargetRanks, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain with binary relevance, `[num_cases]`.

        ndcg@k = sum(1 / log2(1 + rank) for ranks <= k) / ideal
        ideal  = sum(1 / log2(1 + r) for r = 1 ... min(num_targets, k))

    A case with one target at rank 3 has 1 / log2(4) = 0.5.
    """
    discounts = 1 / np.log2(1 + np.arange(1, k + 1))
    ideal = np.concatenate([[1.0], np.cumsum(discounts)])  # 1.0 for no target: 0 / 1
    gains = np.where(ranks.ranks <= k, discounts[np.minimum(ranks.ranks, k) - 1], 0.0)
    return ranks.sum(gains) / ideal[np.minimum(ranks.lengths, k)]


def reciprocal_rank(ranks: TargetRanks, k: int = 500) -> np.ndarray:
    """1 / rank of the first target among the first k, 0 without one, `[num_cases]`."""
    best = np.full(len(ranks.offsets) - 1, NOT_FOUND)
    np.minimum.at(best, ranks.case, ranks.ranks)
    return np.where(best <= k, 1 / best, 0.0)


def mean_popularity(keys: np.ndarray, popularity: np.ndarray, k: int) -> np.ndarray:
    """Mean popularity of a case's first k items, `[num_cases]`; 0 for an empty row.

    Args:
        keys: `[num_cases, >= k]`, -1 where there is none.
        popularity: `[num_items]`, such as the number of training rows of each key.
        k: Items of each answer to look at.
    """
    top = keys[:, :k]
    values = np.where(top >= 0, popularity[top], 0)
    return values.sum(1) / np.maximum((top >= 0).sum(1), 1)


def novelty(keys: np.ndarray, share: np.ndarray, k: int) -> np.ndarray:
    """Mean self-information of the first `k` items, -log2 of the share of users who have each.

    Args:
        keys: `[num_cases, >= k]`, -1 past the end.
        share: `[num_items]`; an item that nobody has counts as one that half a user in a million
            has.
        k: Length of the answers.

    Returns:
        `[num_cases]` bits; NaN for an empty answer.

    >>> novelty(np.array([[0, 1, -1]]), np.array([0.5, 0.25]), k=3).tolist()
    [1.5]
    """
    bits = -np.log2(np.maximum(share, 5e-7))
    valid = keys[:, :k] >= 0
    total = np.where(valid, bits[keys[:, :k]], 0).sum(1)
    with np.errstate(invalid="ignore"):
        return total / valid.sum(1)


def tag_distance(keys: np.ndarray, tags: np.ndarray, k: int) -> np.ndarray:
    """Mean over pairs of the first `k` items of 1 - |common tags| / |tags of either|.

    Args:
        keys: `[num_cases, >= k]`, -1 past the end.
        tags: `[num_items, num_tags]` bool. Two items without tags have the distance 0.
        k: Length of the answers.

    Returns:
        `[num_cases]` from 0 to 1; NaN for an answer of fewer than two items.

    >>> tags = np.array([[1, 0], [1, 1], [0, 1]], bool)
    >>> tag_distance(np.array([[0, 1, 2, -1]]), tags, k=4).round(3).tolist()
    [0.667]
    """
    valid = keys[:, :k] >= 0
    own = np.where(valid[..., None], tags[keys[:, :k]], False).astype(np.float32)
    common = own @ own.transpose(0, 2, 1)
    either = own.sum(2)[:, :, None] + own.sum(2)[:, None] - common
    distance = np.where(either > 0, 1 - common / np.maximum(either, 1), 0)
    pairs = valid[:, :, None] & valid[:, None] & ~np.eye(valid.shape[1], dtype=bool)
    with np.errstate(invalid="ignore"):
        return np.where(pairs, distance, 0).sum((1, 2)) / pairs.sum((1, 2))


def coverage(
    keys: np.ndarray, candidates: np.ndarray, k: int, clusters: np.ndarray | None = None
) -> dict:
    """Share of the candidates that stand in the first k of any case, with its interval.

    It is one number of all answers together, so the interval is the jackknife's: leaving out a
    cluster loses the items that only its answers hold.

        se^2 = (m - 1) / m * sum((lost_c - mean(lost))^2),   lost_c a share of the candidates

    The interval is cut at 0 and 1. Coverage is not a mean of independent cases, so Wilson's
    interval does not apply.

    Args:
        keys: `[num_cases, >= k]`, -1 where there is none.
        candidates: `[num_candidates]`, keys that may be answered.
        k: Items of each answer to look at.
        clusters: `[num_cases]` int, cases that belong together; by default each case is a cluster.
    """
    clusters = np.arange(len(keys)) if clusters is None else clusters
    num_clusters = len(np.unique(clusters))
    top = keys[:, :k]
    size = max(top.max(initial=-1), candidates.max(initial=-1)) + 2  # the last entry is for -1
    first, last = np.full(size, NOT_FOUND), np.full(size, -1)
    owner = np.broadcast_to(clusters[:, None], top.shape)
    np.minimum.at(first, top, owner)
    np.maximum.at(last, top, owner)
    first, last = first[candidates], last[candidates]
    share = float((last >= 0).mean()) if len(candidates) else 0.0
    if num_clusters < 2:
        return {"mean": share, "low": None, "high": None}
    _, lost = np.unique(first[(first == last)], return_counts=True)
    lost = np.concatenate([lost, np.zeros(num_clusters - len(lost))]) / len(candidates)
    variance = (num_clusters - 1) / num_clusters * ((lost - lost.mean()) ** 2).sum()
    return _around(share, variance, (0.0, 1.0))


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
    return _around(mean, variance)


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
        return _around(mean, variance)  # a single user; or users that are all alike
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
    return _around(mean, variance, (-largest, largest))


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


def _around(mean: float, variance: float | None, bounds=(-np.inf, np.inf)) -> dict:
    """The normal interval, cut at the `bounds` of the mean."""
    if variance is None:
        return {"mean": mean, "low": None, "high": None}
    half = Z95 * float(np.sqrt(variance))
    return {"mean": mean, "low": max(bounds[0], mean - half), "high": min(bounds[1], mean + half)}
