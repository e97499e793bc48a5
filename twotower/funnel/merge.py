"""Merge: makes one list of what the sources found, with each item once.

A merge scores every item of the pool by its ranks and scores at the sources:

    reciprocal rank    sum over sources of weight / (constant + rank)
    quotas             -min over sources of rank / quota, which interleaves the sources
    weighted sum       sum over sources of weight * normalised score, weights fitted on validation
"""

import abc
import concurrent.futures
import os
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.optimize

from twotower.data.cases import EvalCases
from twotower.data.requests import Requests
from twotower.funnel.filters import is_among
from twotower.funnel.pool import Pool
from twotower.funnel.stage import Part
from twotower.retrieval.candidates import NO_KEY, Candidates

# Requests merged at once: their pool stays in the processor's cache.
ROWS = 128


class Merge(Part):
    """Merges what sources found: `merge(requests, found, k)`."""

    def __call__(
        self,
        requests: Requests,
        found: Mapping[str, Candidates],
        k: int,
        keep: Mapping[str, int] | None = None,
    ) -> Candidates:
        """The best `k` items of each request's pool, by `score`.

        Args:
            requests: What was asked.
            found: Name of a source -> its candidates; at least one source.
            k: 1 or more.
            keep: Name of a source -> how many of its first items are among the `k` in any case.

        Returns:
            Candidates with the columns `<source>_rank` (from 1; 0 where the source did not find the
            item) and `<source>_score` (NaN there).
        """

        def merged(start: int) -> Candidates:
            rows = np.arange(start, min(start + ROWS, len(requests)))
            pool = Pool.of({name: part.take(rows) for name, part in found.items()})
            return pool.best(self.score(requests.take(rows), pool), k, keep)

        if len(requests) <= ROWS:
            return merged(0)
        # Here no source keeps the other cores busy.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            return Candidates.concat([*threads.map(merged, range(0, len(requests), ROWS))])

    @property
    @abc.abstractmethod
    def named(self) -> list[str]:
        """Names of the sources for which it has a weight or a quota."""

    @abc.abstractmethod
    def score(self, requests: Requests, pool: Pool) -> np.ndarray:
        """`[num_requests, width]` float32, larger is better."""


class ReciprocalRank(Merge):
    """Reciprocal-rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009), which uses only ranks.

        score(item) = sum over sources s of weight_s / (constant + rank_s(item))

    If only sources with a weight of 0 find anything for a request, all sources have the weight 1
    for this request. Otherwise all scores would be 0, and candidates in the order of their keys.

    Args:
        constant: A larger one favours the first ranks less. 60 in the paper.
        weights: Name of a source -> its weight; 1 for sources that are not named.

    >>> from twotower.data.catalogue import Catalogue
    >>> import pandas as pd
    >>> found = {"a": Candidates.rank(np.array([[4, 7]]), np.float32([[2, 1]]), 2)}
    >>> found["b"] = Candidates.rank(np.array([[7, 8]]), np.float32([[2, 1]]), 2)
    >>> requests = Requests.of(Catalogue(pd.DataFrame({"item_id": ["x"]})), [[]])
    >>> ReciprocalRank()(requests, found, 3).keys.tolist()
    [[7, 4, 8]]
    """

    kind = "reciprocal_rank"
    SETTINGS = ("constant", "weights")

    def __init__(self, constant: float = 60.0, weights: Mapping[str, float] | None = None) -> None:
        self.constant, self.weights = constant, dict(weights or {})
        if not all(0 <= value < np.inf for value in (constant, *self.weights.values())):
            raise ValueError(
                f"constant and weights must be 0 or more, and finite; got {constant}, "
                f"{self.weights}."
            )

    @property
    def named(self) -> list[str]:
        return list(self.weights)

    def score(self, requests: Requests, pool: Pool) -> np.ndarray:
        scores = np.zeros(pool.keys.shape, np.float32)
        equal = np.zeros(pool.keys.shape, np.float32)  # scores if all weights are 1
        for name, ranks in zip(pool.names, pool.ranks):
            shares = np.float32(1) / np.float32(self.constant + np.maximum(ranks, 1))
            shares = np.where(ranks > 0, shares, np.float32(0))
            scores += np.float32(self.weights.get(name, 1.0)) * shares
            equal += shares
        return np.where(scores.any(1, keepdims=True), scores, equal)


class Quotas(Merge):
    """Interleaves the sources, so that each fills its share of the list.

        score(item) = -min over the sources s that found it of rank_s(item) / quota_s

    A list as long as the sum of the quotas has the first quota_s items of every source s. If
    sources overlap, further items fill the list in the same proportion.

    A source without a quota adds no items. But if no source with a quota found anything for a
    request, the others fill its list in equal shares, such as the fallback of a funnel.

    Args:
        quotas: Name of a source -> its number of items, positive.
    """

    kind = "quotas"
    SETTINGS = ("quotas",)

    def __init__(self, quotas: Mapping[str, float]) -> None:
        if not quotas or not all(0 < quota < np.inf for quota in quotas.values()):
            raise ValueError(
                f"quotas must be positive and finite, one a source; got {dict(quotas)}."
            )
        self.quotas = dict(quotas)

    @property
    def named(self) -> list[str]:
        return list(self.quotas)

    def score(self, requests: Requests, pool: Pool) -> np.ndarray:
        scores = np.full(pool.keys.shape, -np.inf, np.float32)
        for name, ranks in zip(pool.names, pool.ranks):
            if name in self.quotas:
                share = -ranks.astype(np.float32) / np.float32(self.quotas[name])
                np.maximum(scores, np.where(ranks > 0, share, -np.inf), out=scores)
        left = np.flatnonzero(~np.isfinite(scores).any(1))
        for ranks in pool.ranks:
            share = np.where(ranks[left] > 0, -ranks[left].astype(np.float32), -np.inf)
            scores[left] = np.maximum(scores[left], share)
        return scores


class WeightedSum(Merge):
    """A weighted sum of the sources' scores, with weights by the length of the history.

        score(item) = sum over sources s of w[b, s] z_s(item),   z_s = (x_s - least_s) / std_s

    x_s is the score of the item at source s. least_s and std_s are the smallest score and the
    standard deviation of the scores of this source for the request. So z_s is 0 for the last item
    that the source found, and for items that it did not find. If all its scores are equal, z_s is 1
    for all it found. b is the bucket of the length of the history, so users with short histories
    can have other weights.

    If no source with a weight found anything for a request, all `names` have the weight 1 for it.
    Otherwise all its scores would be 0: if only iALS had a weight, a user without a history would
    get candidates in the order of their keys.

    Args:
        names: The `num_sources` sources; others have no weight.
        weights: `[num_buckets, num_sources]`, 0 or more.
        bounds: `[num_buckets]` smallest history length of each bucket, ascending from 0.

    Raises:
        ValueError: A name that occurs twice; weights of another shape, negative or not finite; or
            bounds that do not ascend from 0.
    """

    kind = "weighted_sum"
    SETTINGS = ("names", "bounds")
    ARRAYS = ("weights float [num_buckets, num_sources]",)

    def __init__(
        self, names: Sequence[str], weights: np.ndarray, bounds: Sequence[int] = (0,)
    ) -> None:
        self.names, self.bounds = list(names), list(bounds)
        if len({*self.names}) < len(self.names):
            raise ValueError(f"names are those of sources, none twice; got {self.names}.")
        self.weights = np.asarray(weights, np.float32)
        if self.weights.shape != (len(self.bounds), len(self.names)):
            raise ValueError(
                f"expected weights [{len(self.bounds)}, {len(self.names)}], a row a bucket and a "
                f"column a source; got {self.weights.shape}."
            )
        if not ((self.weights >= 0) & (self.weights < np.inf)).all():
            raise ValueError(f"weights must be 0 or more, and finite; got {self.weights.tolist()}.")
        check_bounds(self.bounds)

    @classmethod
    def fit(
        cls,
        found: Mapping[str, Candidates],
        cases: EvalCases,
        bounds: Sequence[int] = (0,),
        pull: float = 10.0,
    ) -> "WeightedSum":
        """Fits the weights by cross-entropy, with a softmax over the pool of each request.

            loss(w) = - sum over cases of the mean over targets t in the pool of
                        log softmax(score)[t]
            w_all minimises loss(w) over all cases
            w_b minimises loss(w) + pull * |w - w_all|^2 over the cases of bucket b

        So the weights of a bucket with few cases stay close to the weights over all cases.

        Args:
            found: Name of a source -> what it found for the cases. No source may have been fitted
                on their targets, so take validation cases.
            cases: The cases.
            bounds: Smallest history length of each bucket, ascending from 0.
            pull: Weight of the penalty on a bucket's squared distance from the weights of all.

        Raises:
            ValueError: No case has a target that a source found, or bounds that do not ascend
                from 0.
        """
        check_bounds(bounds)
        names = list(found)
        features, is_target, length = [], [], []
        for start in range(0, len(cases), ROWS):
            rows = np.arange(start, min(start + ROWS, len(cases)))
            pool = Pool.of({name: part.take(rows) for name, part in found.items()})
            valid = pool.keys != NO_KEY
            z = map(_standardised, pool.ranks, pool.scores)
            features.append(np.stack([values[valid] for values in z], axis=1))
            is_target.append(is_among(pool.keys, cases.targets.take(rows))[valid])
            length.append(valid.sum(1))
        z, is_target = np.concatenate(features), np.concatenate(is_target)
        row = np.repeat(np.arange(len(cases)), np.concatenate(length))
        targets = np.bincount(row, is_target, len(cases))
        if not targets.any():
            raise ValueError("weights need cases with targets among what the sources found.")
        bucket = np.searchsorted(bounds, cases.history.lengths, side="right") - 1
        of_all = _likeliest(z, is_target, row, targets > 0, np.where(z.any(0), 0.3, 0.0), 0.0)
        weights = [
            _likeliest(z, is_target, row, (targets > 0) & (bucket == index), of_all, pull)
            for index in range(len(bounds))
        ]
        return cls(names, np.array(weights), bounds)

    @property
    def named(self) -> list[str]:
        return self.names

    def score(self, requests: Requests, pool: Pool) -> np.ndarray:
        bucket = np.searchsorted(self.bounds, requests.history.lengths, side="right") - 1
        weights = self.weights[bucket]  # [num_requests, num_sources]
        parts = [
            (self.names.index(name), ranks, values)
            for name, ranks, values in zip(pool.names, pool.ranks, pool.scores)
            if name in self.names
        ]
        is_heard = np.zeros(len(bucket), bool)
        for source, ranks, _ in parts:
            is_heard |= (weights[:, source] > 0) & ranks.any(1)
        weights = np.where(is_heard[:, None], weights, np.float32(1))
        scores = np.zeros(pool.keys.shape, np.float32)
        for source, ranks, values in parts:
            if weights[:, source].any():  # a fit leaves many sources without any weight
                scores += weights[:, source, None] * _standardised(ranks, values)
        return scores


def check_bounds(bounds: Sequence[int]) -> None:
    """Raises ValueError for bounds of buckets that do not ascend from 0."""
    if not len(bounds) or bounds[0] != 0 or not (np.diff(bounds) > 0).all():
        raise ValueError(f"bounds must ascend from 0; got {list(bounds)}.")


def _standardised(ranks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """z of `WeightedSum` for a source in a `Pool`, `[num_requests, width]` float32."""
    found = ranks > 0
    count = np.maximum(found.sum(1, keepdims=True), 1)
    least = scores.min(1, keepdims=True, initial=np.inf, where=found)
    z = np.where(found, scores - np.where(np.isfinite(least), least, 0), 0)
    mean = z.sum(1, keepdims=True) / count
    variance = (np.square(z, out=np.empty_like(z)).sum(1, keepdims=True) / count) - mean**2
    # Where all scores are equal they say only that the source found the item.
    return np.where(found & (variance <= 0), 1, z / np.sqrt(np.where(variance > 0, variance, 1)))


def _likeliest(
    z: np.ndarray,
    is_target: np.ndarray,
    row: np.ndarray,
    is_case: np.ndarray,
    prior: np.ndarray,
    pull: float,
) -> np.ndarray:
    """Weights `[num_sources]` of 0 or more that make the targets of some cases likely.

    Args:
        z: `[num_entries, num_sources]`, entries of all cases' pools.
        is_target: `[num_entries]`.
        row: `[num_entries]` ascending, the case of each.
        is_case: `[num_cases]` which cases to fit.
        prior: `[num_sources]` where to begin.
        pull: Weight of the penalty on the squared distance from there.
    """
    entries = is_case[row]
    if not entries.any():
        return prior
    z, is_target, row = z[entries], is_target[entries], row[entries]
    starts = np.flatnonzero(np.append(True, row[1:] != row[:-1]))
    lengths = np.diff(np.append(starts, len(row)))
    share = is_target / np.repeat(np.add.reduceat(is_target.astype(float), starts), lengths)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = z @ weights
        scores -= np.repeat(np.maximum.reduceat(scores, starts), lengths)
        odds = np.exp(scores)
        total = np.add.reduceat(odds, starts)
        value = np.log(total).sum() - share @ scores
        gradient = (odds / np.repeat(total, lengths) - share) @ z
        away = weights - prior
        return value + pull * away @ away, gradient + 2 * pull * away

    least = [(0.0, None)] * len(prior)
    return scipy.optimize.minimize(loss, prior, jac=True, bounds=least).x
