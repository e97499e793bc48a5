"""The cheapest parameters that reach a recall target, measured on held-out queries."""

import dataclasses
import itertools
import time
import warnings
from typing import NamedTuple

import numpy as np

from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import NO_SCORE, Candidates

NORMAL_95 = 1.645  # quantile of the normal distribution


def recall_against(exact: Candidates, found: Candidates) -> float:
    """Mean share of the exact answers that is in `found`; see `shares_found`."""
    return float(shares_found(exact, found).mean())


def shares_found(exact: Candidates, found: Candidates) -> np.ndarray:
    """Share of each query's exact answer that is in `found`, `[num_queries]`.

    An item that scores no less than the last of the exact answer counts as found: of several items
    with the last score, the exact answer has those with the lowest keys, but an index may have
    others. (The score of one item, computed in two ways, differs by up to 1e-5 of the largest.)

    Args:
        exact: The best items of each query.
        found: An answer to the same queries from the same vectors, so that its scores compare.
    """
    last = np.where(exact.valid, exact.scores, np.inf).min(1, keepdims=True)
    slack = 1e-5 * np.where(exact.valid, np.abs(exact.scores), 0).max(1, keepdims=True)
    better = exact.valid & (exact.scores > last + slack)
    # Items outside of the exact answer can equal its last one at most.
    is_better = _stands_in(found, exact, better) | (found.scores > last + slack)
    is_last = _stands_in(found, exact, exact.valid) | (found.scores >= last - slack)
    num_better, num = better.sum(1), exact.counts
    hits = np.minimum((found.valid & is_better).sum(1), num_better)
    hits += np.minimum((found.valid & is_last & ~is_better).sum(1), num - num_better)
    return hits / np.maximum(num, 1)


def _stands_in(found: Candidates, exact: Candidates, some: np.ndarray) -> np.ndarray:
    """Which keys of `found` are among `some` (a mask) of the same query's exact keys."""
    # Numbered anew, so that no key is too large to share one number with its row.
    unique, code = np.unique(np.concatenate([exact.keys, found.keys], 1), return_inverse=True)
    code = code.reshape(len(exact), -1) + np.arange(len(exact))[:, None] * len(unique)
    width = exact.keys.shape[1]
    return np.isin(code[:, width:], code[:, :width][some])


def built_recall(retriever: Retriever, queries: np.ndarray, k: int) -> float:
    """recall@k of the backend alone for `queries` `[num_queries, dim]`, without the buffer and
    without exact scans for short rows."""
    exact = rescored(retriever, queries, retriever.search_built(queries, k, exact=True))
    return recall_against(exact, rescored(retriever, queries, retriever.search_built(queries, k)))


def rescored(retriever: Retriever, queries: np.ndarray, found: Candidates) -> Candidates:
    """The answer of `search_built` to `queries` `[num_queries, dim]`, in its order, with scores
    from the index's float32 vectors.

    A backend's scores cannot judge it, since it may hold other vectors.
    """
    built, scores = retriever._store.built, np.full(found.keys.shape, NO_SCORE)
    positions = built.positions(found.keys)
    # In float64: near a query, float32 leaves little of the difference of two squares.
    queries = np.asarray(queries, np.float64)
    if retriever.metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    for row, (query, count) in enumerate(zip(queries, found.counts)):
        vectors = built.vectors[positions[row, :count]]
        if retriever.metric == "euclidean":
            scores[row, :count] = -np.square(vectors - query).sum(1)
        else:
            scores[row, :count] = vectors @ query
    return dataclasses.replace(found, scores=scores)


def tune(
    retriever: Retriever,
    queries: np.ndarray,
    k: int,
    recall_target: float = 0.99,
) -> dict:
    """Sets a built index's search effort to the cheapest that reaches the target.

    `Retriever.efforts` names the settings: `ef_search` of HNSW (and `refine` over codes),
    `num_probes` of IVF (and `refine` of IVF-PQ), leaves and reordering candidates of ScaNN. For
    each value of the first setting, the second one rises until the target is reached, or until
    recall grows no more. Of the pairs that reach it, the fastest is chosen, measured one query at a
    time.

    The target is reached if the lower end of a one-sided 95% interval reaches it. A mean that only
    just reaches it on these queries may miss it on others: ScaNN had a recall of .985 on 200
    queries, and of .976 on the next 300.

    A search that fetches more than k, to step over exclusions, takes more effort in proportion
    (`Retriever.config_at`).

    Recall is that of the backend alone, without the exact scan that completes short rows and
    without the buffer. If no setting reaches the target, the best is chosen, with a warning.

    Args:
        retriever: An approximate index. Its `config` is replaced. Its `tuned`, which is saved with
            it, gets the values that are returned.
        queries: `[num_queries, dim]`, like those in service; not the vectors of items.
        k: Number of answers at which recall is measured.
        recall_target: Share of the exact top k to find.

    Returns:
        The parameters chosen, `recall`, `target`, `k` and `num_items`.

    Raises:
        ValueError: An index without such a parameter, an index that was not built, or no queries.
    """
    if len(queries) == 0:
        raise ValueError("tuning needs queries like those to come; got none.")
    wanted = rescored(retriever, queries, retriever.search_built(queries, k, exact=True))
    if not retriever.efforts(k):
        raise ValueError(f"{type(retriever).__name__} has no parameter of search effort to tune.")
    retriever.tuned = {}  # so that `config` holds for every depth
    best = _cheapest(retriever, queries, wanted, recall_target)
    retriever.config = dataclasses.replace(retriever.config, **best.efforts)
    if best.missed:
        warnings.warn(
            f"{type(retriever).__name__} finds {best.recall:.4f} of the exact top {k} at most on "
            f"{len(queries)} queries, so not surely the target {recall_target}: build it with a "
            "larger configuration, or tune it on more queries. Among a few thousand items, "
            "exact search is fast, too.",
            stacklevel=2,
        )
    retriever.tuned = best.efforts | {
        "recall": best.recall,
        "target": recall_target,
        "k": k,
        "num_items": len(retriever),
    }
    return retriever.tuned


class _Trial(NamedTuple):
    """Efforts that were measured; the cheapest trial is the least by its first two fields."""

    missed: bool  # whether the target is not surely reached
    cost: float  # seconds; if the target is missed, minus the recall
    efforts: dict
    recall: float


def _cheapest(
    retriever: Retriever, queries: np.ndarray, wanted: Candidates, target: float
) -> _Trial:
    """The cheapest efforts that find the target's share of `wanted`."""
    ladders = retriever.efforts(wanted.keys.shape[1])
    *others, last = ladders
    trials = [
        _climb(retriever, queries, wanted, target, dict(zip(others, values)), last, ladders[last])
        for values in itertools.product(*(ladders[name] for name in others))
    ]
    return min(trials, key=lambda trial: (trial.missed, trial.cost))


def _climb(
    retriever: Retriever,
    queries: np.ndarray,
    wanted: Candidates,
    target: float,
    efforts: dict,
    name: str,
    values: list[int],
) -> _Trial:
    """Raises the effort `name` beside other `efforts` until the target is reached."""
    depth, recalls = wanted.keys.shape[1], []
    # From the cheapest upwards: each step costs as much as all before it.
    for value in values:
        efforts = efforts | {name: value}
        retriever.config = dataclasses.replace(retriever.config, **efforts)
        found = rescored(retriever, queries, retriever.search_built(queries, depth))
        shares = shares_found(wanted, found)
        recalls.append(float(shares.mean()))
        missed = recalls[-1] - NORMAL_95 * shares.std() / np.sqrt(len(shares)) < target
        # A plateau, but not that of the first steps: efSearch is no less than what refinement
        # fetches, so that these can be one setting.
        flat = len(recalls) > 3 and recalls[-1] < recalls[-4] + 0.0005
        flat = flat and recalls[-4] > recalls[0]
        if not missed or flat:
            break
    cost = -recalls[-1] if missed else _seconds(retriever, queries[:50], depth)
    return _Trial(missed, cost, efforts, recalls[-1])


def _seconds(retriever: Retriever, queries: np.ndarray, k: int) -> float:
    """Seconds of all queries, searched one at a time; the better of two rounds."""
    rounds = []
    for _ in range(2):
        started = time.perf_counter()
        for row in range(len(queries)):
            retriever.search_built(queries[row : row + 1], k)
        rounds.append(time.perf_counter() - started)
    return min(rounds)
