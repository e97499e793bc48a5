"""A source of variety: a quota from each of the clusters of items near the user."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.data.requests import Requests
from twotower.funnel.sources.answers import Columns, at_most, in_batches
from twotower.funnel.stage import Model, Source
from twotower.limits import whole_number
from twotower.retrieval.arguments import checked_rows
from twotower.retrieval.candidates import NO_SCORE, Candidates, best_of_dense
from twotower.retrieval.vectors import KeyedVectors

MOST_CLUSTERS = 32_767  # they are sorted as int16


class Diverse(Source):
    """The best items of each of the clusters nearest to the request, in turns.

    A user's nearest items often lie in one or two clusters. Here each of the `nearest` clusters
    gives at most k / `nearest` items, rounded up: first the best of each cluster by the model's
    score, then the second of each, and so on. The answer is shorter than k if a cluster has fewer.

        Diverse.fit(bundle, clusters=50)(requests, k=500)

    Args:
        model: The trained model.
        centroids: `[num_clusters, dim]` float32.
        cluster: `[num_items]` int64, the cluster of each of `model.keys`.
        nearest: Number of clusters that answer a request.

    Raises:
        ValueError: `cluster` is of another length than `model.keys`, or has a cluster without a
            centroid.
    """

    kind = "diverse"
    encodes = True
    SETTINGS = ("nearest",)
    ARRAYS = ("centroids float [num_clusters, dim]", "cluster int [num_items]")

    def __init__(
        self, model: Model, centroids: np.ndarray, cluster: np.ndarray, nearest: int = 10
    ) -> None:
        if len(cluster) != len(model.keys):
            raise ValueError(
                f"{len(cluster)} items have a cluster, and the model has {len(model.keys)} items. "
                "Fit the source on this model."
            )
        least, most = cluster.min(initial=0), cluster.max(initial=0)
        if not 0 <= least <= most < len(centroids):
            raise ValueError(
                f"items have clusters from 0 to {len(centroids) - 1}; got {least} to {most}."
            )
        self.centroids, self.cluster = centroids, cluster
        self.nearest = min(whole_number(nearest, "nearest", 1), len(centroids))
        self._model, exact = model, model.retriever("exact")
        self._items = KeyedVectors(*exact.live(), exact.metric)
        self._columns = Columns(self._items.keys)
        self._centroids = KeyedVectors(np.arange(len(centroids)), centroids, exact.metric)
        self._sizes = np.bincount(cluster, minlength=len(centroids))

    @classmethod
    def fit(cls, model: Model, clusters: int = 50, nearest: int = 10, seed: int = 0) -> "Diverse":
        """Clusters the model's item vectors by k-means, from `faiss`.

        Args:
            model: The trained model.
            clusters: Number of clusters, at most 32,767; no more than there are items.
            nearest: Number of clusters that answer a request.
            seed: Of the first centroids.
        """
        import faiss  # here, since only fitting needs it

        exact = model.retriever("exact")
        _, vectors = exact.live()
        clusters = min(whole_number(clusters, "clusters", 1), len(vectors), MOST_CLUSTERS)
        means = faiss.Kmeans(
            vectors.shape[1],
            clusters,
            seed=seed,
            spherical=exact.metric != "euclidean",
            min_points_per_centroid=1,
            max_points_per_centroid=1000,
        )
        means.train(vectors)
        _, cluster = means.index.search(vectors, 1)
        return cls(model, np.array(means.centroids), cluster[:, 0].astype(np.int64), nearest)

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], model: Model
    ) -> "Diverse":
        return cls(model, arrays["centroids"], arrays["cluster"], **settings)

    def __call__(self, requests: Requests, k: int) -> Candidates:
        k = at_most(k, len(self.cluster))

        def answer(part: Requests) -> Candidates:
            metric = self._items.metric
            queries = checked_rows(self._model.encode(part), metric, "vectors of requests")
            near, _ = best_of_dense(self._centroids.scores(queries), self.nearest)
            is_near = np.zeros((len(part), len(self.centroids)), bool)
            np.put_along_axis(is_near, near, True, axis=1)
            scores = self._items.scores(queries)  # [num_requests, num_items]
            scores[~is_near[:, self.cluster]] = NO_SCORE
            excluded = self._columns.of(part.exclude)
            scores[excluded.row_index, excluded.values] = NO_SCORE
            columns, best = best_of_dense(scores, int(self._sizes[near].sum(1).max()))
            rank = _rank_in_group(np.where(best > NO_SCORE, self.cluster[columns], -1))
            row, place = np.nonzero((best > NO_SCORE) & (rank < -(-k // self.nearest)))
            best = best[row, place]
            scores.fill(NO_SCORE)
            # The turn comes first, then the score, squeezed into (-1/2, 1/2).
            squeezed = best / (2 + 2 * np.abs(best))
            scores[row, columns[row, place]] = squeezed - rank[row, place]
            return self._columns.best(scores, k, part.exclude)

        return in_batches(answer, requests, 2 * len(self.cluster), k)


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """How many columns to the left of each have its group, `[num_rows, num_columns]` int64.

    >>> _rank_in_group(np.array([[7, 3, 7, 7]])).tolist()
    [[0, 0, 1, 2]]
    """
    # Of int16, NumPy sorts by digits.
    order = np.argsort(groups.astype(np.int16), axis=1, kind="stable")
    ordered, column = np.take_along_axis(groups, order, axis=1), np.arange(groups.shape[1])
    is_first = np.ones(groups.shape, bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    begins = np.maximum.accumulate(np.where(is_first, column, 0), axis=1)
    ranks = np.empty(groups.shape, np.int64)
    np.put_along_axis(ranks, order, column - begins, axis=1)
    return ranks
