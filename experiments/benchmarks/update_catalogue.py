"""A catalogue that grows: what an index is first built on, what comes later, and what is asked."""

import dataclasses

import numpy as np
from vector_sets import scann_sizes

from twotower.retrieval import build
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import Candidates
from twotower.retrieval.tuning import tune

NEIGHBOURHOODS = 30  # that items which drift come from


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Items to build from, items that come later, and queries.

    Attributes:
        first: `[num_first, dim]`, whose keys are their positions.
        later: `[num_later, dim]`, in the order that they come.
        tuning: `[num_tuning, dim]` queries to tune by.
        queries: `[num_queries, dim]` queries to measure by.
        metric: Of the bundle.
        k: Answers a query.
        recall_target: Recall to tune for.
    """

    first: np.ndarray
    later: np.ndarray
    tuning: np.ndarray
    queries: np.ndarray
    metric: str
    k: int
    recall_target: float

    def tuned(self, backend: str, keys: np.ndarray, vectors: np.ndarray) -> Retriever:
        """An index of the size that these items want, tuned."""
        config = build.IndexConfig(backend, self.metric, parameters(backend, len(keys), self.k))
        index = build.build(config, keys, vectors)
        tune(index, self.tuning, self.k, self.recall_target)
        return index

    def exact(self, keys: np.ndarray, vectors: np.ndarray) -> Candidates:
        """The right answers over these items."""
        config = build.IndexConfig("flat", self.metric)
        return build.build(config, keys, vectors).search(self.queries, self.k)


def divided(vectors: np.ndarray, num_first: int, drift: bool) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the first build, and the others, both in random order.

    With drift the others are those that lie nearest to NEIGHBOURHOODS of the items.
    """
    order = np.random.default_rng(0).permutation(len(vectors))
    if drift:
        nearness = (vectors @ vectors[order[:NEIGHBOURHOODS]].T).max(1)  # [num_items]
        is_far = np.zeros(len(vectors), bool)
        is_far[np.argsort(nearness)[:num_first]] = True
        order = np.concatenate([order[is_far[order]], order[~is_far[order]]])
    return vectors[order[:num_first]], vectors[order[num_first:]]


def parameters(backend: str, num_items: int, k: int) -> dict:
    """Parameters for so many items. All are written out, so that a rebuild has the same."""
    if backend.startswith("ivf"):
        return {"threads": 1, "num_lists": max(1, min(num_items, int(4 * np.sqrt(num_items))))}
    if backend == "scann":
        return scann_sizes(num_items, k)
    return {"threads": 1}
