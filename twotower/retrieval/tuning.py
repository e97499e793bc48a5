"""The cheapest parameters that reach a recall target, measured on held-out queries."""

import dataclasses

import numpy as np

from twotower.retrieval.base import Retriever
from twotower.retrieval.brute_force import BruteForceIndex
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
    """Sets a built index's search effort to the least that reaches the target.

    Tries `ef_search` of HNSW, or the leaves to search of ScaNN, from cheap to dear. ScaNN keeps at
    least one leaf unsearched: searching all would be an exact scan under another name.

    Args:
        retriever: HNSW or ScaNN; its `config` is replaced.
        queries: `[num_queries, dim]` like those to come, not the items themselves.
        k: Answers that recall is measured at.
        recall_target: Share of the exact top k to find.

    Returns:
        `recall`, `target` and the parameter chosen, for the index's manifest.

    Raises:
        ValueError: An index without such a parameter.
    """
    config = getattr(retriever, "config", None)
    if hasattr(config, "ef_search"):
        name, values = "ef_search", [k, 2 * k, 4 * k, 8 * k, 16 * k]
    elif hasattr(config, "num_leaves_to_search"):
        leaves = config.num_leaves
        shares = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
        name, values = "num_leaves_to_search", sorted({max(1, int(s * leaves)) for s in shares})
    else:
        raise ValueError(f"{type(retriever).__name__} has no parameter of search effort.")
    exact = BruteForceIndex(retriever.metric)
    exact.restore(retriever.state())
    wanted = exact.search(queries, k)
    for value in values:
        retriever.config = dataclasses.replace(config, **{name: value})
        recall = recall_against(wanted, retriever.search(queries, k))
        if recall >= recall_target:
            break
    return {name: value, "recall": recall, "target": recall_target, "k": k}
