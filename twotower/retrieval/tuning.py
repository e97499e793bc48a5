"""The cheapest parameters that reach a recall target, measured on held-out queries."""

import dataclasses
import itertools
import time
import warnings

import numpy as np

from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import Candidates

DEEP_QUERIES = 100  # queries that the deeper searches are tuned on
NORMAL_95 = 1.645  # quantile of the normal distribution


def recall_against(exact: Candidates, found: Candidates) -> float:
    """Mean share of the exact answer that `found` holds, too."""
    return float(shares_found(exact, found).mean())


def shares_found(exact: Candidates, found: Candidates) -> np.ndarray:
    """Share of each query's exact answer that `found` holds, too, `[num_queries]`."""
    # Numbered anew, so that no key is too large to share one number with its row.
    unique, code = np.unique(np.concatenate([exact.keys, found.keys], 1), return_inverse=True)
    code = code.reshape(len(exact), -1) + np.arange(len(exact))[:, None] * len(unique)
    width = exact.keys.shape[1]
    hit = np.isin(code[:, :width], code[:, width:][found.valid]) & exact.valid
    return hit.sum(1) / np.maximum(exact.counts, 1)


def tune(
    retriever: Retriever,
    queries: np.ndarray,
    k: int,
    recall_target: float = 0.99,
    deepest: int = 16,
) -> dict:
    """Sets a built index's search effort to the cheapest that reaches the target.

    What there is to set, `Retriever.efforts` says: `ef_search` of HNSW (and `refine` over codes),
    `num_probes` of IVF (and `refine` of IVF-PQ), leaves and reordering candidates of ScaNN. The
    last of them is halved down to its least value, for each value of the other; of the pairs that
    reach the target the quickest stays, asked one query at a time. Reached means that the lower
    end of a one-sided 95% interval is: a mean that just touches it on these queries misses it on
    others (ScaNN found .985 of what 200 queries wanted and .976 for the next 300).

    Where exclusions and filters make a search fetch more than k, the last of them are harder to
    find than the first, so the same is done for 2k, 4k, ... `deepest` candidates, measured on the
    last k of those: with the best 500 of every query excluded, ScaNN tuned for 100 alone found .56.
    `Retriever.config_at` picks the depth.

    Recall is the backend's own: neither the exact scan that completes short rows nor the fresh
    buffer helps it. Where no setting reaches the target the best stays, with a warning.

    Args:
        retriever: An approximate index; its `config` is replaced, and `tuned`, which is saved with
            it, says what was found.
        queries: `[num_queries, dim]` like those to come, not the items themselves.
        k: Answers that recall is measured at.
        recall_target: Share of the exact top k to find.
        deepest: In units of k, a power of 2; 1 for the first depth alone.

    Returns:
        The parameters chosen, `recall`, `target`, `k`, `num_items`, and as `deeper` the depths
        beyond k, each with its parameters.

    Raises:
        ValueError: An index without such a parameter or `build`, or no queries.
    """
    if len(queries) == 0:
        raise ValueError("tuning needs queries like those to come; got none.")
    wanted = retriever.search_built(queries, k, exact=True)
    if not retriever.efforts(k):
        raise ValueError(f"{type(retriever).__name__} has no parameter of search effort to tune.")
    retriever.tuned = {}  # so that `config` holds for every depth
    efforts, recall, missed = _cheapest(retriever, queries, wanted, k, recall_target)
    retriever.config = config = dataclasses.replace(retriever.config, **efforts)
    if missed:
        warnings.warn(
            f"{type(retriever).__name__} finds {recall:.4f} of the exact top {k} at most on "
            f"{len(queries)} queries, so not surely the target {recall_target}: build it with a "
            "larger configuration, or tune it on more queries.",
            stacklevel=2,
        )
    # A scan takes the place of a deeper search.
    most = min(k * deepest, len(retriever) / retriever.distances_per_candidate)
    deeper, depth, some = [], 2 * k, queries[:DEEP_QUERIES]
    while depth <= most:
        wanted = _last(retriever.search_built(some, depth, exact=True), k)
        deeper.append([depth, _cheapest(retriever, some, wanted, depth, recall_target)[0]])
        depth *= 2
    retriever.config = config
    measured = {"recall": recall, "target": recall_target, "k": k, "num_items": len(retriever)}
    retriever.tuned = efforts | measured | {"deeper": deeper}
    return retriever.tuned


def _last(found: Candidates, k: int) -> Candidates:
    """The last k places of each row."""
    keep = np.zeros(found.keys.shape, bool)
    keep[:, -k:] = True
    return found.mask(keep).head(k)


def _cheapest(
    retriever: Retriever, queries: np.ndarray, wanted: Candidates, depth: int, target: float
) -> tuple[dict, float, bool]:
    """The efforts that find `wanted` among `depth` candidates, the recall that they reach, and
    whether that misses the target."""
    ladders = retriever.efforts(depth)
    *others, last = ladders
    tried = []  # (misses the target, seconds or what it misses, efforts, recall)
    for values in itertools.product(*(ladders[name] for name in others)):
        efforts, recalls = dict(zip(others, values)), []
        # From the cheapest upwards: each step costs as much as all before it.
        for value in ladders[last]:
            efforts[last] = value
            retriever.config = dataclasses.replace(retriever.config, **efforts)
            shares = shares_found(wanted, retriever.search_built(queries, depth))
            recalls.append(float(shares.mean()))
            missed = recalls[-1] - NORMAL_95 * shares.std() / np.sqrt(len(shares)) < target
            # A plateau, but not that of the first steps: efSearch is no less than what refinement
            # fetches, so that these can be one setting.
            flat = len(recalls) > 3 and recalls[-1] < recalls[-4] + 0.0005
            flat = flat and recalls[-4] > recalls[0]
            if not missed or flat:
                break
        cost = -recalls[-1] if missed else _seconds(retriever, queries[:50], depth)
        tried.append((missed, cost, efforts, recalls[-1]))
    missed, _, efforts, recall = min(tried, key=lambda one: one[:2])
    return efforts, recall, missed


def _seconds(retriever: Retriever, queries: np.ndarray, k: int) -> float:
    """For all queries, one at a time; the better of two rounds."""
    rounds = []
    for _ in range(2):
        started = time.perf_counter()
        for row in range(len(queries)):
            retriever.search_built(queries[row : row + 1], k)
        rounds.append(time.perf_counter() - started)
    return min(rounds)
