"""Baselines: what a model has to beat, on the same rows and with the same evaluation.

Each is fitted on the training rows of a split and answers from a case's history, as the query tower
does. Every rating counts as 1.

The defaults are those with the best recall_micro@100 on the validation cases of `random` on
MovieLens 1M. Tried there: EASE l2 150 / 300 / 500 / 1000 / 2000 .433 / .451 / .460 / .465 / .459;
iALS with 64 factors, (alpha, regularization) (3, 10) .456, (5, 10) .456, (5, 20) .459, (10, 10)
.445, (10, 30) .453; item-kNN with 200 neighbours cosine .337, tfidf .359, bm25 .398, and bm25 with
500 .374. Earlier iALS figures of this split (.464 on test) are those of alpha 10, regularization
10. The iALS defaults (128 factors, alpha 8, regularization 90) were chosen on validation later and
reach .491, so they are the stronger opponent.
"""

import abc
import string
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.linalg as linalg
import scipy.sparse as sparse
from absl import logging

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.evaluation.evaluate import from_scores
from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates


class Baseline(abc.ABC):
    """Scores the whole catalogue for each request.

    Its best guess for a request whose history has no item of the training rows is what is popular.

        ease = make("ease").fit(dataset, split.train, split.candidates)
        report = evaluate(ease.recommend, split)
    """

    def fit(
        self,
        dataset: Dataset,
        train: np.ndarray,
        candidates: np.ndarray | None = None,
        max_gib: float = 4.0,
    ) -> Self:
        """Fits on rows of `dataset.interactions`.

        Args:
            dataset: The data.
            train: Rows to learn from, such as a split's `train`.
            candidates: Keys that may be answered, such as a split's; by default the items that
                have a training row, which are all that these methods know of.
            max_gib: Memory that fitting may take, in GiB.

        Raises:
            ValueError: No rows, or a fit that would take more than `max_gib`.
        """
        if len(train) == 0:
            raise ValueError(f"{type(self).__name__} needs training rows; got none.")
        keys = dataset.item_keys[train]
        self._counts = np.bincount(keys, minlength=len(dataset.items)).astype(np.float32)
        by_user = Ragged.group(keys, dataset.user_rows[train], len(dataset.users))
        matrix = self._matrix(by_user)
        self._claim(self._fit_bytes(matrix), max_gib)
        self._fit(matrix)
        if candidates is None:
            candidates = np.flatnonzero(self._counts)
        # Some 20 bytes a score: half a GiB at a time, however many items there are.
        batch_size = max(1, min(1024, 2**25 // len(dataset.items)))
        self._recommend = from_scores(self.scores, candidates, batch_size)
        return self

    def _claim(self, num_bytes: float, max_gib: float) -> None:
        """Logs the memory that fitting takes if that is much, and refuses more than `max_gib`."""
        gib, name = num_bytes / 2**30, type(self).__name__
        if gib > max_gib:
            raise ValueError(
                f"{name} takes about {gib:,.1f} GiB for {np.count_nonzero(self._counts):,} items, "
                f"more than the {max_gib:g} that are allowed. Allow more (max_gib, or "
                "--max_gib of evaluate.py), or take item_knn or ials, whose memory grows with the "
                "number of items and not with its square."
            )
        if gib > 0.5:
            logging.info("%s: about %.1f GiB", name, gib)

    def scores(self, requests: Requests) -> np.ndarray:
        """`[num_requests, num_items]` float32, larger is better."""
        histories = self._matrix(requests.history)
        scores = self._score(histories)
        known = histories @ (self._counts > 0)
        scores[known == 0] = self._counts
        return scores

    def recommend(self, requests: Requests, k: int) -> Candidates:
        """The best `k` items of each request; call `fit` first."""
        if not hasattr(self, "_recommend"):
            raise ValueError(f"{type(self).__name__} is not fitted; call fit(dataset, train).")
        return self._recommend(requests, k)

    def _matrix(self, rows: Ragged) -> sparse.csr_matrix:
        """Rows of keys as 0 and 1, `[num_rows, num_items]`; a repeated key counts once."""
        ones = np.ones(len(rows.values), np.float32)
        shape = (len(rows), len(self._counts))
        matrix = sparse.csr_matrix((ones, rows.values, rows.offsets), shape)
        matrix.sum_duplicates()
        matrix.data[:] = 1
        return matrix

    def _fit_bytes(self, matrix: sparse.csr_matrix) -> float:
        """About how much memory `_fit` takes beside the matrix."""
        return 0.0

    @abc.abstractmethod
    def _fit(self, matrix: sparse.csr_matrix) -> None:
        """Fits on `[num_users, num_items]`."""

    @abc.abstractmethod
    def _score(self, histories: sparse.csr_matrix) -> np.ndarray:
        """Scores from histories `[num_cases, num_items]`, same shape, dense, writable."""


class Popularity(Baseline):
    """The items with the most training rows, for everybody.

    Popularity().fit(dataset, split.train).recommend(split.cases, k=10)
    """

    def _fit(self, matrix: sparse.csr_matrix) -> None:
        pass

    def _score(self, histories: sparse.csr_matrix) -> np.ndarray:
        return np.repeat(self._counts[None, :], histories.shape[0], axis=0)


class Ease(Baseline):
    """EASE (Steck, WWW 2019, eq. 8): a linear item-item model with a zero diagonal, in closed form.

        G = X'X + l2 I,   P = G^-1,   B_ij = -P_ij / P_jj,   B_jj = 0,   scores = history B

    Args:
        l2: Ridge penalty.

    Attributes:
        items: `[num_known]` int64, keys of the items with a training row; after `fit`.
        weights: `[num_known, num_known]` float32, B of these items; after `fit`.

    Raises:
        ValueError: `l2` not positive.

        Ease(l2=500).fit(dataset, split.train).recommend(split.cases, k=10)
    """

    def __init__(self, l2: float = 1000.0) -> None:
        if not l2 > 0:
            raise ValueError(f"l2 must be positive; got {l2}.")
        self.l2 = l2

    def _fit_bytes(self, matrix: sparse.csr_matrix) -> float:
        return 12.0 * np.count_nonzero(self._counts) ** 2  # G as float64, B as float32

    def _fit(self, matrix: sparse.csr_matrix) -> None:
        # Only items with a row: the others would be empty rows of B.
        self.items = np.flatnonzero(self._counts)
        trained = matrix[:, self.items].astype(np.float64)
        by_item, step = trained.T.tocsr(), 256
        gram = np.empty((len(self.items),) * 2)
        for start in range(0, len(gram), step):
            gram[start : start + step] = (by_item[start : start + step] @ trained).toarray()
        gram[np.diag_indices_from(gram)] += self.l2
        # In place, for which SciPy needs column order: the transpose of a symmetric matrix.
        weights = linalg.inv(gram.T, overwrite_a=True, check_finite=False)
        weights /= -np.diag(weights).copy()
        np.fill_diagonal(weights, 0)
        # In row order: a history picks rows.
        self.weights = weights.astype(np.float32, order="C")

    def _score(self, histories: sparse.csr_matrix) -> np.ndarray:
        scores = np.zeros(histories.shape, np.float32)
        scores[:, self.items] = histories[:, self.items] @ self.weights
        return scores


class ItemKnn(Baseline):
    """Item-kNN: the sum of an item's similarities to the history (Sarwar et al., WWW 2001).

    Args:
        neighbours: Most similar items kept for each item.
        weighting: How a user counts in a similarity: `cosine`, `tfidf` (a user of many items says
            less) or `bm25` (and a popular item is not similar to all).

    Attributes:
        similarity: `[num_items, num_items]`, sparse, float32; after `fit`.

        ItemKnn(neighbours=100).fit(dataset, split.train).recommend(split.cases, k=10)
    """

    def __init__(self, neighbours: int = 200, weighting: str = "bm25") -> None:
        kinds = ("cosine", "tfidf", "bm25")
        if weighting not in kinds or neighbours < 1:
            raise ValueError(
                f"weighting must be one of {kinds} and neighbours at least 1; got {weighting!r}, "
                f"{neighbours}."
            )
        self.neighbours, self.weighting = neighbours, weighting

    def _fit_bytes(self, matrix: sparse.csr_matrix) -> float:
        # Key and value of each neighbour in two precisions; the weighted matrix and its transposes.
        return 20.0 * self.neighbours * matrix.shape[1] + 40.0 * matrix.nnz

    def _fit(self, matrix: sparse.csr_matrix) -> None:
        nearest = _implicit("nearest_neighbours")
        items = matrix.T.astype(np.float64)
        if self.weighting == "cosine":
            weighted = nearest.normalize(items)
        elif self.weighting == "tfidf":
            weighted = nearest.normalize(nearest.tfidf_weight(items))
        else:
            weighted = nearest.bm25_weight(items, K1=1.2, B=0.75)
        model = nearest.ItemItemRecommender(K=self.neighbours)
        model.fit(weighted.T.tocsr(), show_progress=False)
        self.similarity = model.similarity.astype(np.float32)

    def _score(self, histories: sparse.csr_matrix) -> np.ndarray:
        return (histories @ self.similarity).toarray()


class IAls(Baseline):
    """iALS: weighted matrix factorisation (Hu, Koren and Volinsky, ICDM 2008) from `implicit`.

    A case's vector is solved from its history and the item vectors, so a user who came after the
    training is no different from the others. The default parameters found most on MovieLens 1M
    (`random`, validation, recall@500).

    Args:
        factors: Size of a vector.
        alpha: Weight of an observed pair; all others weigh 1.
        regularization: L2 penalty.
        iterations: Alternations.
        seed: Of the first vectors.

    Attributes:
        item_vectors: `[num_items, factors]` float32; after `fit`.

        IAls(factors=128).fit(dataset, split.train).recommend(split.cases, k=10)
    """

    def __init__(
        self,
        factors: int = 128,
        alpha: float = 8.0,
        regularization: float = 90.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> None:
        self.factors, self.alpha, self.regularization = factors, alpha, regularization
        self.iterations, self.seed = iterations, seed

    def _fit_bytes(self, matrix: sparse.csr_matrix) -> float:
        return 4.0 * self.factors * sum(matrix.shape) + 24.0 * matrix.nnz  # and transposes

    def _fit(self, matrix: sparse.csr_matrix) -> None:
        als = _implicit("cpu.als")
        from threadpoolctl import threadpool_limits  # comes with implicit

        # implicit starts threads itself; BLAS threads inside them make it many times slower.
        with threadpool_limits(1, "blas"):
            self._model = als.AlternatingLeastSquares(
                factors=self.factors,
                alpha=self.alpha,
                regularization=self.regularization,
                iterations=self.iterations,
                random_state=self.seed,
            )
            self._model.fit(matrix, show_progress=False)
        self.item_vectors = self._model.item_factors

    def _score(self, histories: sparse.csr_matrix) -> np.ndarray:
        users = self._model.recalculate_user(np.arange(histories.shape[0]), histories)
        return users @ self.item_vectors.T


class ContentIAls(IAls):
    """iALS whose new items get vectors from their content, by ridge regression.

        W = (F'F + l2 I)^-1 F'V,   v_new = mean + f_new W

    F are the centred indicators of genres, decade and title words of the items with training rows,
    V their centred iALS vectors. A new item is one without a training row, to which iALS itself
    gives a zero vector. A content tower should beat this baseline on new items.

    Args:
        l2: Ridge penalty.
        min_items: Items with training rows that must have a word before it counts.
        **parameters: Of `IAls`.

    Raises:
        ValueError: `l2` not positive; items without genres, year and title (from `fit`).

        ContentIAls(l2=5).fit(dataset, split.train).recommend(split.cases, k=10)
    """

    def __init__(self, l2: float = 10.0, min_items: int = 2, **parameters: Any) -> None:
        super().__init__(**parameters)
        if not l2 > 0:
            raise ValueError(f"l2 must be positive; got {l2}.")
        self.l2, self.min_items = l2, min_items

    def fit(
        self,
        dataset: Dataset,
        train: np.ndarray,
        candidates: np.ndarray | None = None,
        max_gib: float = 4.0,
    ) -> Self:
        super().fit(dataset, train, candidates, max_gib)
        known, vectors = self._counts > 0, np.array(self.item_vectors, np.float64)
        content = content_indicators(dataset.items)
        content = content[:, content[known].sum(0) >= self.min_items]
        self._claim(24.0 * content.shape[1] ** 2, max_gib)  # F'F, twice while it is centred
        features, mean = content[known], vectors[known].mean(0)
        mean_features = np.asarray(features.mean(0))
        # F'F of centred features, without centring F itself, which is sparse.
        gram = (features.T @ features).toarray()
        gram -= known.sum() * np.outer(mean_features, mean_features)
        gram[np.diag_indices_from(gram)] += self.l2
        weights = np.linalg.solve(gram, features.T @ (vectors[known] - mean))
        vectors[~known] = mean + content[~known] @ weights - mean_features @ weights
        self._vectors = vectors.astype(np.float32)
        return self

    def _score(self, histories: sparse.csr_matrix) -> np.ndarray:
        users = self._model.recalculate_user(np.arange(histories.shape[0]), histories)
        return users @ self._vectors.T


def content_indicators(items: pd.DataFrame) -> sparse.csr_array:
    """Which genres, decade and title words each item has, `[num_items, num_indicators]` of 0 and 1.

    Raises:
        ValueError: A table with none of the columns `genres`, `year` and `title`.
    """
    readers: dict[str, Callable] = {"genres": tuple, "year": _decade, "title": _words}
    columns = [column for column in readers if column in items]
    if not columns:
        raise ValueError(
            f"content_ials needs genres, year or title of items; there are {list(items.columns)}."
        )
    found = [
        {(column, value) for column in columns for value in readers[column](row[column])}
        for row in items[columns].to_dict("records")
    ]
    columns_of = {name: column for column, name in enumerate(sorted(set().union(*found), key=str))}
    rows = Ragged.from_rows([[columns_of[name] for name in row] for row in found])
    ones = np.ones(len(rows.values))
    return sparse.csr_array((ones, rows.values, rows.offsets), (len(items), len(columns_of)))


def _decade(year: float) -> tuple[int, ...]:
    """The decade of a year; none where the year is missing (NaN, or below 1)."""
    return (int(year) // 10,) if year >= 1 else ()


def _words(title: str) -> list[str]:
    """Words in lower case, without the punctuation around them."""
    words = [word.strip(string.punctuation) for word in str(title).lower().split()]
    return [word for word in words if word]


BASELINES = {
    "popularity": Popularity,
    "ease": Ease,
    "item_knn": ItemKnn,
    "ials": IAls,
    "content_ials": ContentIAls,
}


def make(name: str, **parameters: Any) -> Baseline:
    """A baseline by its name.

    Raises:
        ValueError: An unknown name.
    """
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}; there are {', '.join(BASELINES)}.")
    return BASELINES[name](**parameters)


def _implicit(module: str) -> Any:
    """A module of `implicit`, an extra; imported where it is needed."""
    import importlib

    try:
        return importlib.import_module(f"implicit.{module}")
    except ImportError as error:
        raise ImportError(
            'item_knn and ials need the package implicit: pip install "twotower[funnel]"'
        ) from error
