"""Metrics from the ranks of targets. Imports only NumPy and `intervals.py`.

A metric of accuracy needs only the rank of each target in an answer. `target_ranks` computes the
ranks and handles ties; each metric after it is a line of arithmetic over ranks.
"""

import dataclasses

import numpy as np

from twotower.evaluation.intervals import normal_interval

# Lengths of answers that are reported, and the depth of the reciprocal rank.
KS = (10, 20, 50, 100, 200, 500)
MRR_AT = 500

# Answers that are looked at together. All of 100,000 users' at once would take GB.
ROWS = 4096
# Rank of a target that is not in the answer, or that may be past its end.
NOT_FOUND = np.iinfo(np.int64).max


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
    means = np.zeros(len(keys))
    for start in range(0, len(keys), ROWS):
        top = keys[start : start + ROWS, :k]
        total = np.where(top >= 0, popularity[top], 0).sum(1)
        means[start : start + ROWS] = total / np.maximum((top >= 0).sum(1), 1)
    return means


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
    for start in range(0, len(top), ROWS):
        part, owner = top[start : start + ROWS], clusters[start : start + ROWS, None]
        np.minimum.at(first, part, owner)
        np.maximum.at(last, part, owner)
    first, last = first[candidates], last[candidates]
    share = float((last >= 0).mean()) if len(candidates) else 0.0
    if num_clusters < 2:
        return {"mean": share, "low": None, "high": None}
    _, lost = np.unique(first[(first == last)], return_counts=True)
    lost = np.concatenate([lost, np.zeros(num_clusters - len(lost))]) / len(candidates)
    variance = (num_clusters - 1) / num_clusters * ((lost - lost.mean()) ** 2).sum()
    return normal_interval(share, variance, (0.0, 1.0))
