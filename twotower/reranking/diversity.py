"""Diverse lists: maximal marginal relevance, and determinantal point processes. Numpy only.

    Mmr.of_tags(genre_table(catalogue), weight=0.3)(requests, candidates)
    Dpp.of_vectors(bundle, weight=0.3, length=40, window=10)(requests, candidates)

Both fill a list item by item. The gain of an item combines its relevance with its dissimilarity to
the items chosen before; `weight` trades accuracy for diversity. Items are compared by their tags or
by the model's vectors (similarity.py).
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from twotower.data.requests import Requests
from twotower.funnel.stage import Model
from twotower.limits import whole_number
from twotower.reranking.greedy import Gains, Greedy, check_weight, checked_tags, relevance
from twotower.reranking.similarity import Similarity, TagSimilarity, ToColumn, VectorSimilarity
from twotower.retrieval.candidates import Candidates

# Share of an item's similarity to others in the kernel of `Dpp`. Below 1, since items of equal tags
# would make every determinant 0. On MovieLens 1M (`random`, validation) shares from .2 to .7 gave
# the same variety at a loss of 2% NDCG@10.
SHARE = 0.5


class Varied(Greedy):
    """Base class of `Mmr` and `Dpp`: settings, and the similarity of items.

    Args:
        weight: From 0, which keeps the order, to 1, which considers only diversity. A request may
            have another one (`Requests.diversity`).
        length: Number of positions to re-rank; the other items follow in their old order.
        window: The next item is compared with this many of the last items; 0 for all.
        tags: `[num_items, num_tags]` 1 where an item has a tag, else 0. None or an empty table
            compares items by the model's vectors.
        model: The trained model; not needed if there are tags.

    Raises:
        ValueError: A setting out of bounds, tags other than 0 and 1, or neither tags nor a model.
    """

    SETTINGS = ("weight", "length", "window")
    ARRAYS = ("tags int [num_items, num_tags]",)

    def __init__(
        self,
        weight: float,
        length: int = 40,
        window: int = 0,
        tags: np.ndarray | None = None,
        model: Model | None = None,
    ) -> None:
        super().__init__(length)
        self.weight, self.window = check_weight(weight), whole_number(window, "window")
        self._similarity: Similarity
        if tags is not None and np.size(tags):
            self.tags = checked_tags(tags)
            self._similarity = TagSimilarity(self.tags)
        elif model is not None:
            self.tags = np.zeros((0, 0), np.uint8)
            self._similarity = VectorSimilarity(model)
        else:
            raise ValueError("items are compared by tags or by a model's vectors; got neither.")

    @classmethod
    def of_tags(cls, tags: np.ndarray, weight: float, **settings: Any) -> Self:
        """Items are compared by their tags `[num_items, num_tags]`."""
        return cls(weight, **settings, tags=tags)

    @classmethod
    def of_vectors(cls, model: Model, weight: float, **settings: Any) -> Self:
        """Items are compared by the model's vectors."""
        return cls(weight, **settings, model=model)

    def weights(self, requests: Requests) -> np.ndarray:
        """The weight of each request, `[num_requests, 1]`."""
        asked = requests.diversity
        return np.where(np.isnan(asked), self.weight, asked)[:, None]

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], model: Model
    ) -> Self:
        return cls(**settings, tags=arrays["tags"], model=model)

    @property
    def num_features(self) -> int:
        return self._similarity.num_features


class Mmr(Varied):
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

        gain(i) = (1 - weight) * relevance(i) - weight * max over chosen j of similarity(i, j)

    `weight` is 1 - lambda of the paper.
    """

    kind = "mmr"

    def gains(self, requests: Requests, candidates: Candidates) -> Gains:
        similar = self._similarity.among(candidates.keys)
        return _Marginal(relevance(candidates), similar, self.weights(requests), self.window)


class _Marginal(Gains):
    def __init__(
        self, relevant: np.ndarray, similar: ToColumn, weight: np.ndarray, window: int
    ) -> None:
        self._relevant, self._similar = np.float32(1 - weight) * relevant, similar
        self._weight, self._window = np.float32(weight), window
        self._last: list[np.ndarray] = []  # similarities to the items of the window
        self._most = np.zeros_like(relevant)

    def values(self) -> np.ndarray:
        return self._relevant - self._weight * self._most

    def add(self, column: np.ndarray) -> None:
        similar = self._similar(column)
        if not self._window:
            np.maximum(self._most, similar, out=self._most)
            return
        self._last = [*self._last, similar][-self._window :]
        self._most = np.max(self._last, axis=0)


class Dpp(Varied):
    """The most likely list of a determinantal point process, greedily (Chen, Zhang and Zhou,
    NeurIPS 2018, algorithm 1).

        gain(i) = (1 - weight) * relevance(i) + weight * log(det S[chosen + i] / det S[chosen])
        S[i, j] = 0.5 * similarity(i, j), and 1 on the diagonal

    The ratio of determinants is the part of item i that the chosen items do not explain. It is
    computed from a Cholesky factor, to which each chosen item adds a row. When the window moves on,
    the factor is computed again for the items in it; it is only as large as the window.

    `weight` is 1 - theta of the paper.
    """

    kind = "dpp"

    def gains(self, requests: Requests, candidates: Candidates) -> Gains:
        similar = self._similarity.among(candidates.keys)
        return _Determinant(relevance(candidates), similar, self.weights(requests), self.window)


class _Determinant(Gains):
    """With S = R'R over the window's items, `_factor` holds R and a column for all candidates.

    The squared length of column i is 1 - ratio(i).
    """

    def __init__(
        self, relevant: np.ndarray, similar: ToColumn, weight: np.ndarray, window: int
    ) -> None:
        self._relevant, self._similar = np.float32(1 - weight) * relevant, similar
        self._weight, self._window = np.float32(weight), window
        self._rows = np.arange(len(relevant))
        self._chosen = np.zeros((len(relevant), 0), np.int64)  # the columns of the window's items
        self._factor = np.zeros((len(relevant), 0, relevant.shape[1]), relevant.dtype)
        self._ratio = np.ones_like(relevant)

    def values(self) -> np.ndarray:
        return self._relevant + self._weight * np.log(self._ratio)

    def add(self, column: np.ndarray) -> None:
        rows = self._rows
        if self._window and self._chosen.shape[1] == self._window:
            self._drop_first()
        kernel = SHARE * self._similar(column)  # [num_requests, k]
        kernel[rows, column] = 1
        known = self._factor[rows, :, column][:, None]  # [num_requests, 1, size]
        kernel -= np.matmul(known, self._factor)[:, 0]
        kernel /= np.sqrt(self._ratio[rows, column])[:, None]
        self._factor = np.concatenate([self._factor, kernel[:, None]], axis=1)
        self._chosen = np.concatenate([self._chosen, column[:, None]], axis=1)
        # A chosen item explains itself; what is left of others is more than 1 - SHARE of it.
        self._ratio = np.maximum(self._ratio - kernel * kernel, 1 - SHARE)

    def _drop_first(self) -> None:
        """Makes the factor anew for the window without its first item."""
        self._chosen = self._chosen[:, 1:]
        # [num_requests, window, window - 1]
        within = np.take_along_axis(self._factor, self._chosen[:, None], axis=2)
        lower = np.linalg.cholesky(np.matmul(within.transpose(0, 2, 1), within))
        turn = np.linalg.solve(lower, within.transpose(0, 2, 1))
        self._factor = np.matmul(turn, self._factor)
        self._ratio = np.maximum(1 - np.square(self._factor).sum(1), 1 - SHARE)
