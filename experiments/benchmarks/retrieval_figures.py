"""Recall and speed of an index: of all queries, with exclusions, and with filters."""

import time

import numpy as np
import vector_sets

from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates
from twotower.retrieval.tuning import recall_against
from twotower.retrieval.vectors import KeyedVectors

FILTER_SHARE = 0.02


def measured(index, queries, k: int, wanted, singles: int, exclude: Ragged | None = None) -> dict:
    """Recall, queries a second in batches of 100, and the latency of single queries.

    Args:
        index: Retriever.
        queries: `[num_queries, dim]`.
        k: Answers a query.
        wanted: The exact Candidates.
        singles: Queries to ask one at a time, round and round.
        exclude: As in `Retriever.search`, one row for each query.
    """

    def ask(rows):
        return index.search(
            queries[rows], k, exclude and exclude.take(np.arange(len(queries))[rows])
        )

    batches = [slice(start, start + 100) for start in range(0, len(queries), 100)]
    rounds = []
    for _ in range(2):  # the better of two: the first may find cold caches
        begun = time.perf_counter()
        answer = Candidates.concat([ask(batch) for batch in batches])
        rounds.append(time.perf_counter() - begun)
    single = []
    for turn in range(singles):
        row = turn % len(queries)
        one, banned = queries[row : row + 1], exclude and exclude.take(np.array([row]))
        begun = time.perf_counter()
        index.search(one, k, banned)
        single.append(time.perf_counter() - begun)
    found = {f"recall@{k}": recall_against(wanted, answer), "qps": len(queries) / min(rounds)}
    return found | quantiles(single)


def filtered(index, data: vector_sets.VectorSet, queries, k: int, near: bool) -> dict:
    """Latency and recall with a filter of its own for each of 50 queries: the 2% of the items that
    lie nearest to it, or farthest from it."""
    oracle = KeyedVectors.checked(np.arange(len(data.vectors)), data.vectors, index.metric)
    size, found, wanted, seconds = int(FILTER_SHARE * len(oracle)), [], [], []
    asked = queries[:50]
    asked = KeyedVectors.checked(np.arange(len(asked)), asked, index.metric)  # as long as cosine's
    for query in asked.vectors[:, None]:
        scores = oracle.scores(query)[0]
        order = np.argpartition(-scores if near else scores, size)[:size]
        wanted.append(Candidates.rank(order[None], scores[None, order], k))
        begun = time.perf_counter()
        found.append(index.search(query, k, allow=order))
        seconds.append(time.perf_counter() - begun)
    recall = recall_against(Candidates.concat(wanted), Candidates.concat(found))
    return {f"recall@{k}": recall} | quantiles(seconds)


def quantiles(seconds: list[float]) -> dict:
    """Of single queries."""
    p50, p99 = 1e3 * np.quantile(seconds, [0.5, 0.99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}
