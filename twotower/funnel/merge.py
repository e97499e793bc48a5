"""Merge: from what each source found to one list, each item once.

A merge scores every item of the pool from its ranks and scores at the sources. Three ways to do so:

    reciprocal rank    sum over sources of weight / (constant + rank)
    quotas             an item stands where rank / quota is smallest
    weighted sum       sum over sources of weight * normalised score, weights fitted on validation
"""

import abc
from collections.abc import Mapping

import numpy as np

from twotower.data.requests import Requests
from twotower.funnel.pool import Pool
from twotower.funnel.stage import Part
from twotower.retrieval.candidates import Candidates

# Requests merged at once: their pool stays in the processor's cache.
ROWS = 128


class Merge(Part):
    """Merges what sources found: `merge(requests, found, k)`."""

    def __call__(self, requests: Requests, found: Mapping[str, Candidates], k: int) -> Candidates:
        """The best `k` items of each request's pool, by `score`.

        Args:
            requests: What was asked.
            found: Name of a source -> its candidates; at least one source.
            k: 1 or more.

        Returns:
            Candidates with the columns `<source>_rank` (from 1; 0 where the source did not find the
            item) and `<source>_score` (NaN there).
        """
        parts = []
        for start in range(0, max(len(requests), 1), ROWS):
            rows = np.arange(start, min(start + ROWS, len(requests)))
            pool = Pool.of({name: part.take(rows) for name, part in found.items()})
            parts.append(pool.best(self.score(requests.take(rows), pool), k))
        return Candidates.concat(parts)

    @abc.abstractmethod
    def score(self, requests: Requests, pool: Pool) -> np.ndarray:
        """`[num_requests, width]` float32, larger is better."""


class ReciprocalRank(Merge):
    """Reciprocal-rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): knows ranks alone.

        score(item) = sum over sources s of weight_s / (constant + rank_s(item))

    Args:
        constant: How little the first ranks stand out.
        weights: Name of a source -> its weight; 1 for those that are not named.

    >>> from twotower.data.dataset import Catalogue
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
        if not constant >= 0:
            raise ValueError(f"constant must be 0 or more; got {constant}.")
        self.constant, self.weights = constant, dict(weights or {})

    def score(self, requests: Requests, pool: Pool) -> np.ndarray:
        scores = np.zeros(pool.keys.shape, np.float32)
        for name, ranks in zip(pool.names, pool.ranks):
            weight = np.float32(self.weights.get(name, 1.0))
            scores += np.where(ranks > 0, weight / np.float32(self.constant + ranks), 0)
        return scores


class Quotas(Merge):
    """Every source gets its share of the list, which interleaves them by their quotas.

        score(item) = -min over the sources s that found it of rank_s(item) / quota_s

    The first sum-of-quotas items hold at least each source's first quota, however the sources
    overlap; places that overlaps leave free go on in the same proportion.

    Args:
        quotas: Name of a source -> its number of items, positive; a source that is not named gives
            nothing.
    """

    kind = "quotas"
    SETTINGS = ("quotas",)

    def __init__(self, quotas: Mapping[str, float]) -> None:
        if not quotas or not min(quotas.values()) > 0:
            raise ValueError(f"quotas must be positive, one a source; got {dict(quotas)}.")
        self.quotas = dict(quotas)

    def score(self, requests: Requests, pool: Pool) -> np.ndarray:
        scores = np.full(pool.keys.shape, -np.inf, np.float32)
        for name, ranks in zip(pool.names, pool.ranks):
            if name in self.quotas:
                share = -ranks.astype(np.float32) / np.float32(self.quotas[name])
                np.maximum(scores, np.where(ranks > 0, share, -np.inf), out=scores)
        return scores
