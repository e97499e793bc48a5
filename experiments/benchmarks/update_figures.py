"""Compares searches over old and new items: their recall, work and time."""

import time

import numpy as np
import threadpoolctl
from retrieval_figures import quantiles

from twotower.retrieval.backends.faiss_index import faiss
from twotower.retrieval.tuning import recall_against, shares_found

BLOCK, WARM_UP = 50, 5  # single searches of one index before the next one's turn


def measured(
    searches: dict, exact: dict, queries: np.ndarray, new_from: int, k: int, num_searches: int
) -> dict[str, dict]:
    """Recall, work and time of each of `searches`, beside the others.

    Args:
        searches: Name -> `search(queries, k)`.
        exact: Name -> the right answers.
        queries: `[num_queries, dim]`.
        new_from: Keys from here on came after the first build.
        k: Answers a query.
        num_searches: Single searches to time each by.
    """
    results, counters = {}, (faiss.cvar.indexIVF_stats, faiss.cvar.hnsw_stats)
    with threadpoolctl.threadpool_limits(1):
        seconds = seconds_by_name(searches, queries, k, num_searches)
        for name, search in searches.items():
            for counter in counters:
                counter.reset()
            found, wanted = search(queries, k), exact[name]
            scored = sum(counter.ndis for counter in counters) / len(queries)
            new = wanted.valid & (wanted.keys >= new_from)
            lost = [
                of.sum() - np.isin(keys[of], there).sum()
                for keys, of, there in zip(wanted.keys, new, found.keys)
            ]
            # Where an equal item stands in the place of a new one, nothing is lost.
            lost = np.minimum(lost, np.rint((1 - shares_found(wanted, found)) * wanted.counts))
            results[name] = {
                f"recall@{k}": recall_against(wanted, found),
                # Of all places of new items together: some queries have one, some a hundred.
                f"recall_new@{k}": float(1 - lost.sum() / new.sum()) if new.any() else None,
                "new_in_answers": float(new.sum() / wanted.valid.sum()),
                **quantiles(seconds[name]),
                "scored": scored or None,
            }
    return results


def seconds_by_name(
    searches: dict, queries: np.ndarray, k: int, num_searches: int
) -> dict[str, list[float]]:
    """Seconds of `num_searches` single searches, of each of `searches`.

    Each block of queries is asked of all searches in turn, so that a machine that becomes slower
    does so for all.
    """
    seconds = {name: [] for name in searches}
    for start in range(0, num_searches, BLOCK):
        block = np.arange(start, min(start + BLOCK, num_searches)) % len(queries)
        for name, search in searches.items():
            for row in block[:WARM_UP]:
                search(queries[row : row + 1], k)
            for row in block:
                started = time.perf_counter()
                search(queries[row : row + 1], k)
                seconds[name].append(time.perf_counter() - started)
    return seconds
