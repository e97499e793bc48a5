"""Metrics of ranked lists, each with a 95% interval. Numpy only; imports nothing of the package.

Everything starts from `hits [num_cases, k]`, whether the item at a place is a target of the case,
and `num_targets [num_cases]`. Places past a short list hold no hit.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Z95 = 1.959964  # two-sided 95% quantile of the normal distribution


def recall(hits: np.ndarray, num_targets: np.ndarray, k: int) -> np.ndarray:
    """Share of a case's targets among its first `k`, `[num_cases]`."""
    return hits[:, :k].sum(1) / num_targets


def precision(hits: np.ndarray, k: int) -> np.ndarray:
    """Share of the first `k` places that are targets, `[num_cases]`."""
    return hits[:, :k].sum(1) / k


def hit_rate(hits: np.ndarray, k: int) -> np.ndarray:
    """1 where any target is among the first `k`, `[num_cases]`."""
    return hits[:, :k].any(1).astype(float)


def ndcg(hits: np.ndarray, num_targets: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain of binary targets, `[num_cases]`.

    DCG = sum over hits at rank r <= k of 1 / log2(r + 1); divided by the DCG of a list that starts
    with min(k, number of targets) hits (Järvelin and Kekäläinen, TOIS 2002, with gains of 1).
    """
    discount = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(num_targets, k) - 1]
    found = hits[:, :k]
    return found @ discount[: found.shape[1]] / ideal


def reciprocal_rank(hits: np.ndarray, k: int) -> np.ndarray:
    """1 / rank of the first hit among the first `k`, else 0, `[num_cases]`."""
    found = hits[:, :k]
    return np.where(found.any(1), 1 / (found.argmax(1) + 1), 0.0)


def mean_interval(values: np.ndarray, clusters: np.ndarray | None = None) -> dict[str, float]:
    """Mean and normal 95% interval.

    Args:
        values: `[num_cases]`.
        clusters: `[num_cases]` integers: cases of one cluster (a user's questions) are one draw.
    """
    return ratio_interval(values, np.ones(len(values)), clusters)


def ratio_interval(
    numerator: np.ndarray, denominator: np.ndarray, clusters: np.ndarray | None = None
) -> dict[str, float]:
    """sum(numerator) / sum(denominator) with its linearised 95% interval (delta method).

    With residuals e_i = numerator_i - ratio * denominator_i, summed inside clusters, the variance
    is n / (n - 1) * sum e^2 / (sum denominator)^2 (Cochran, Sampling Techniques, section 2.11).
    """
    total = denominator.sum()
    ratio = numerator.sum() / total
    residual = numerator - ratio * denominator
    if clusters is not None:
        residual = np.bincount(clusters, residual)[np.unique(clusters)]
    n = len(residual)
    half = Z95 * np.sqrt(n / max(n - 1, 1) * np.square(residual).sum()) / total
    return {"mean": float(ratio), "low": float(ratio - half), "high": float(ratio + half)}


def paired_difference(
    a: np.ndarray, b: np.ndarray, clusters: np.ndarray | None = None
) -> dict[str, float]:
    """Mean of a - b over the same cases with its interval; far sharper than two intervals."""
    return mean_interval(np.asarray(a, float) - b, clusters)


def summarise(
    hits: np.ndarray,
    num_targets: np.ndarray,
    ks: Sequence[int] = (10, 20, 50, 100, 500),
    clusters: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """All metrics of the cases by key, such as `recall@100` (mean over cases), `recall_micro@100`
    (over targets: TFRS' top-k categorical accuracy), `hit_rate@10`, `mrr@500`."""
    values = {}
    for k in ks:
        values[f"recall@{k}"] = mean_interval(recall(hits, num_targets, k), clusters)
        values[f"recall_micro@{k}"] = ratio_interval(
            hits[:, :k].sum(1).astype(float), num_targets.astype(float), clusters
        )
        values[f"hit_rate@{k}"] = mean_interval(hit_rate(hits, k), clusters)
        values[f"precision@{k}"] = mean_interval(precision(hits, k), clusters)
        values[f"ndcg@{k}"] = mean_interval(ndcg(hits, num_targets, k), clusters)
    values["mrr@500"] = mean_interval(reciprocal_rank(hits, 500), clusters)
    return values


def coverage(keys: np.ndarray, k: int, num_candidates: int) -> float:
    """Share of the candidates that stand in anyone's first `k`; keys of -1 do not count."""
    shown = np.unique(keys[:, :k])
    return float((shown >= 0).sum() / num_candidates)


def mean_popularity(keys: np.ndarray, k: int, counts: np.ndarray) -> float:
    """Mean number of training rows of the items in the first `k`; `counts` is by key."""
    shown = keys[:, :k]
    return float(counts[shown[shown >= 0]].mean()) if (shown >= 0).any() else 0.0


def means(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Only the means, for a table."""
    return {name: value["mean"] for name, value in metrics.items()}
