"""The cheapest parameters that reach a recall target, measured on held-out queries."""

import dataclasses
import itertools
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import Candidates


def recall_against(exact: Candidates, found: Candidates) -> float:
    """Mean share of the exact answer that `found` holds, too."""
    # Numbered anew, so that no key is too large to share one number with its row.
    unique, code = np.unique(np.concatenate([exact.keys, found.keys], 1), return_inverse=True)
    code = code.reshape(len(exact), -1) + np.arange(len(exact))[:, None] * len(unique)
    width = exact.keys.shape[1]
    hit = np.isin(code[:, :width], code[:, width:][found.valid]) & exact.valid
    return float((hit.sum(1) / np.maximum(exact.counts, 1)).mean())


def tune(retriever: Retriever, queries: np.ndarray, k: int, recall_target: float = 0.99) -> dict:
    """Sets a built index's search effort to the cheapest that reaches the target.

    What there is to set, `Retriever.efforts` says: `ef_search` of HNSW (and `refine` over codes),
    `num_probes` of IVF (and `refine` of IVF-PQ), leaves and reordering candidates of ScaNN. The
    last of them is halved down to its least value, for each value of the other; of the pairs that
    reach the target the quickest stays, one query at a time.

    Recall is the backend's own: neither the exact scan that completes short rows nor the fresh
    buffer helps it. Where no setting reaches the target the best stays, with a warning.

    Args:
        retriever: An approximate index; its `config` is replaced, and `tuned`, which is saved with
            it, says what was found.
        queries: `[num_queries, dim]` like those to come, not the items themselves.
        k: Answers that recall is measured at.
        recall_target: Share of the exact top k to find.

    Returns:
        The parameters chosen, `recall`, `target`, `k` and `num_items`.

    Raises:
        ValueError: An index without such a parameter or `build`, or no queries.
    """
    if len(queries) == 0:
        raise ValueError("tuning needs queries like those to come; got none.")
    wanted = retriever.search_built(queries, k, exact=True)
    ladders = retriever.efforts(k)
    if not ladders:
        raise ValueError(f"{type(retriever).__name__} has no parameter of search effort to tune.")
    *others, last = ladders

    def recall_with(parameters: dict) -> float:
        retriever.config = dataclasses.replace(retriever.config, **parameters)
        return recall_against(wanted, retriever.search_built(queries, k))

    tried = []  # (misses the target, seconds or what is missed, recall, parameters)
    for values in itertools.product(*(ladders[name] for name in others)):
        chosen = dict(zip(others, values))
        recall = recall_with(chosen | {last: ladders[last][-1]})
        if recall < recall_target:
            tried.append((True, -recall, recall, chosen | {last: ladders[last][-1]}))
            continue
        least = _least(
            lambda value: recall_with(chosen | {last: value}) >= recall_target,  # noqa: B023
            ladders[last],
        )
        chosen[last] = least
        recall = recall_with(chosen)
        tried.append((False, _seconds(retriever, queries[:50], k), recall, chosen))
    missed, _, recall, chosen = min(tried, key=lambda one: one[:2])
    retriever.config = dataclasses.replace(retriever.config, **chosen)
    if missed:
        warnings.warn(
            f"{type(retriever).__name__} finds {recall:.4f} of the exact top {k} at most, under "
            f"the target {recall_target}: build it with a larger configuration.",
            stacklevel=2,
        )
    measured = {"recall": recall, "target": recall_target, "k": k, "num_items": len(retriever)}
    retriever.tuned = chosen | measured
    return retriever.tuned


def _seconds(retriever: Retriever, queries: np.ndarray, k: int) -> float:
    """For all queries, one at a time; the better of two rounds."""
    rounds = []
    for _ in range(2):
        started = time.perf_counter()
        for row in range(len(queries)):
            retriever.search_built(queries[row : row + 1], k)
        rounds.append(time.perf_counter() - started)
    return min(rounds)


def _least(reaches: Callable[[int], bool], values: Sequence[int]) -> int:
    """The first of ascending values that reaches, the last if none does; halves its way there."""
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        if reaches(values[middle]):
            high = middle
        else:
            low = middle + 1
    return values[low]
