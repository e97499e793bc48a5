"""The cheapest parameters that reach a recall target, measured on held-out queries."""

import dataclasses
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
    """Sets a built index's search effort to the least that reaches the target.

    For HNSW the least `ef_search`; for ScaNN the fewest leaves, one of which stays unsearched
    (searching all would be an exact scan under another name). Its reordering candidates grow only
    where leaves alone do not do, and never shrink: they also limit what the TFRS layer can answer.

    Recall is the backend's own: neither the exact scan that completes short rows nor the fresh
    buffer helps it. Where no setting reaches the target the dearest stays, with a warning.

    Args:
        retriever: HNSW or ScaNN; its `config` is replaced, and `tuned` says what was found.
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
    config = getattr(retriever, "config", None)
    is_scann = hasattr(config, "num_leaves_to_search")
    if not is_scann and not hasattr(config, "ef_search"):
        raise ValueError(f"{type(retriever).__name__} has no parameter of search effort to tune.")
    wanted = retriever.search_built(queries, k, exact=True)

    def recall_with(**parameters) -> float:
        retriever.config = dataclasses.replace(retriever.config, **parameters)
        return recall_against(wanted, retriever.search_built(queries, k))

    if is_scann:
        name, leaves = "num_leaves_to_search", config.num_leaves
        values = sorted({max(1, min(leaves - 1, leaves * step // 20)) for step in range(1, 20)})
        for times in (1, 2, 4):
            reorder = times * config.num_reordering_candidates
            if (
                recall_with(num_reordering_candidates=reorder, **{name: values[-1]})
                >= recall_target
            ):
                break
        chosen = {"num_reordering_candidates": reorder}
    else:
        name, chosen = "ef_search", {}
        values = [k * step // 4 for step in (4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)]
    chosen[name] = _least(lambda value: recall_with(**{name: value}) >= recall_target, values)
    recall = recall_with(**chosen)
    if recall < recall_target:
        warnings.warn(
            f"{type(retriever).__name__} finds {recall:.4f} of the exact top {k} at most, under "
            f"the target {recall_target}: build it with a larger configuration.",
            stacklevel=2,
        )
    measured = {"recall": recall, "target": recall_target, "k": k, "num_items": len(retriever)}
    retriever.tuned = chosen | measured
    return retriever.tuned


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
