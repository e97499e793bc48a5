"""Similarity of items by their tags, such as genres, or by a model's vectors. Numpy only."""

import abc
from collections.abc import Callable

import numpy as np

from twotower.data.catalogue import Catalogue
from twotower.data.tags import tag_table
from twotower.funnel.stage import Model

# The similarity of each candidate, `[num_requests, k]`, to candidate `column[i]` of request `i`.
ToColumn = Callable[[np.ndarray], np.ndarray]


class Similarity(abc.ABC):
    """Interface: similarity of items from 0 to 1, whose matrix is positive semidefinite.

    Attributes:
        num_features: Number of values that describe an item.
    """

    num_features: int

    @abc.abstractmethod
    def among(self, keys: np.ndarray) -> ToColumn:
        """Similarities among the candidates `[num_requests, k]` of each request."""


class TagSimilarity(Similarity):
    """Jaccard's similarity of tags: |common tags| / |tags of either|.

    Two items without tags have similarity 1, as in `metrics.tag_distance`; items beyond the table's
    end have no tags.

    Args:
        tags: `[num_items, num_tags]` 1 where an item has a tag, else 0.

    >>> similar = TagSimilarity(np.array([[1, 0], [1, 1], [0, 0]])).among(np.array([[0, 1, 2]]))
    >>> similar(np.array([1])).tolist()
    [[0.5, 1.0, 0.0]]
    """

    def __init__(self, tags: np.ndarray) -> None:
        tags = np.pad(np.asarray(tags, np.float32), ((0, 1), (0, 1)))
        tags[:, -1] = ~tags.any(1)  # a tag of those that have none
        self._tags, self._sizes = tags, tags.sum(1)
        self.num_features = tags.shape[1]

    def among(self, keys: np.ndarray) -> ToColumn:
        rows = np.where((keys < 0) | (keys >= len(self._tags)), -1, keys)
        tags, sizes = self._tags[rows], self._sizes[rows]
        request = np.arange(len(keys))

        def to(column: np.ndarray) -> np.ndarray:
            common = np.matmul(tags, tags[request, column][:, :, None])[:, :, 0]
            return common / (sizes + sizes[request, column][:, None] - common)

        return to


class VectorSimilarity(Similarity):
    """Cosine of the model's item vectors, from 0 for opposite to 1 for equal: (1 + cosine) / 2.

    An item whose vector is 0, or that the model does not have, has a cosine of 0 to all others.

    Args:
        model: The trained model.
    """

    def __init__(self, model: Model) -> None:
        self._keys, self._vectors = model.keys, model.vectors
        norms = np.linalg.norm(model.vectors, axis=1)
        self._scales = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
        self.num_features = model.vectors.shape[1]

    def among(self, keys: np.ndarray) -> ToColumn:
        rows = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        scales = np.where(self._keys[rows] == keys, self._scales[rows], 0)
        vectors = self._vectors[rows] * scales[:, :, None]
        request = np.arange(len(keys))

        def to(column: np.ndarray) -> np.ndarray:
            cosine = np.matmul(vectors, vectors[request, column][:, :, None])[:, :, 0]
            cosine[request, column] = 1
            return (1 + cosine) / 2

        return to


def genre_table(catalogue: Catalogue) -> np.ndarray:
    """Which genres each item has, `[num_items, num_genres]` uint8.

    Raises:
        ValueError: A catalogue without genres.
    """
    if "genres" not in catalogue.items:
        raise ValueError(
            f"the items have no genres, only {list(catalogue.items.columns)}. Compare them by the "
            "model's vectors."
        )
    return tag_table(catalogue.items["genres"]).astype(np.uint8)
