"""Collaborative filtering: what those who liked the items of the history liked as well.

The methods are the baselines' (`evaluation/baselines/`), whose fits these sources keep as arrays.
A request whose history has no item of the training rows gets an empty row. (A baseline answers what
is popular then; in a funnel, popularity is a source by itself.) An item that is twice in a history
counts once, and ratings do not count.
"""

import abc
from typing import Any, Self

import numpy as np
import scipy.linalg
import scipy.sparse as sparse

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.evaluation import baselines
from twotower.evaluation.baselines.baseline import MAX_GIB
from twotower.funnel.sources.answers import Columns, at_most, in_batches
from twotower.funnel.stage import Source
from twotower.ragged import Ragged
from twotower.retrieval.candidates import NO_SCORE, Candidates

# Numbers in the histories' vectors that are multiplied at once, or in the systems to solve.
FOLDED = 2**20
# Share of all items from which on a dense product with a history is faster than a sparse one, which
# reads the weights of each of its items anew.
LONG = 1 / 32


class Collaborative(Source):
    """Scores all known items from the known items of the history.

    Args:
        items: `[num_known]` int64, ascending: keys of the items with a training row.
    """

    def __init__(self, items: np.ndarray) -> None:
        self.items, self._columns = items, Columns(items)

    def __call__(self, requests: Requests, k: int) -> Candidates:
        k = at_most(k, len(self.items))

        def answer(part: Requests) -> Candidates:
            history = self._columns.each_once(part.history)
            scores = self._scores(history)
            scores[history.lengths == 0] = NO_SCORE
            return self._columns.best(scores, k, part.exclude)

        return in_batches(answer, requests, len(self.items), k)

    @abc.abstractmethod
    def _scores(self, history: Ragged) -> np.ndarray:
        """`[num_requests, num_known]` float32 from rows of columns, none twice in a row."""

    def _matrix(self, history: Ragged) -> sparse.csr_array:
        """Rows of columns as ones, `[num_requests, num_known]`."""
        ones = np.ones(len(history.values), np.float32)
        shape = (len(history), len(self.items))
        # int32: SciPy would make int64 of the other factor's indices at each product.
        indices, indptr = history.values.astype(np.int32), history.offsets.astype(np.int32)
        return sparse.csr_array((ones, indices, indptr), shape)


class Ease(Collaborative):
    """EASE (Steck, WWW 2019): the sum of an item's weights from the history's items.

    The weights are dense, 4 bytes for each pair of items, so it is for catalogues of some ten
    thousand items. Keeping only the largest weights of each item does not pay: on MovieLens 1M
    (`random`, validation) the largest 400 lose .009 of recall@500 and take as long.

        Ease.fit(dataset, split.train)(requests, k=500)

    Args:
        items: `[num_known]` int64, ascending: keys of the items with a training row.
        weights: `[num_known, num_known]` float32; row i has what item i adds to all scores.
    """

    kind = "ease"
    ARRAYS = ("items int [num_known]", "weights float [num_known, num_known]")

    def __init__(self, items: np.ndarray, weights: np.ndarray) -> None:
        super().__init__(items)
        self.weights = np.ascontiguousarray(weights)

    @classmethod
    def fit(
        cls, dataset: Dataset, train: np.ndarray, l2: float = 1000.0, max_gib: float = MAX_GIB
    ) -> Self:
        """Fits on rows of `dataset.interactions`.

        Args:
            dataset: The data.
            train: `[num_train]` rows to learn from, such as a split's `train`.
            l2: Ridge penalty.
            max_gib: Memory that fitting may take, in GiB.

        Raises:
            ValueError: No rows, or a fit that would take more than `max_gib`.
        """
        fitted = baselines.Ease(l2).fit(dataset, train, max_gib=max_gib)
        return cls(fitted.items, fitted.weights)

    def _scores(self, history: Ragged) -> np.ndarray:
        matrix = self._matrix(history)
        is_long = history.lengths > len(self.items) * LONG
        if not is_long.any():
            return matrix @ self.weights
        scores = np.empty(matrix.shape, np.float32)
        scores[is_long] = matrix[is_long].toarray() @ self.weights
        scores[~is_long] = matrix[~is_long] @ self.weights
        return scores


class ItemKnn(Collaborative):
    """Item-kNN: the sum of an item's similarities to the history (Sarwar et al., WWW 2001).

        ItemKnn.fit(dataset, split.train)(requests, k=500)

    An item that is similar to none of the history is not answered.

    Args:
        items: `[num_known]` int64, ascending: keys of the items with a training row.
        data: `[num_similarities]` float32, similarities, item after item.
        indices: `[num_similarities]`, columns (places in `items`) of the similar items.
        indptr: `[num_known + 1]`, where the similarities of each item begin.
    """

    kind = "item_knn"
    ARRAYS = (
        "items int [num_known]",
        "data float [num_similarities]",
        "indices int [num_similarities]",
        "indptr int [num_known + 1]",
    )

    def __init__(
        self, items: np.ndarray, data: np.ndarray, indices: np.ndarray, indptr: np.ndarray
    ) -> None:
        super().__init__(items)
        self.data, self.indices, self.indptr = data, indices, indptr
        self._similarity = sparse.csr_array(
            (data, indices.astype(np.int32), indptr.astype(np.int32)), (len(items), len(items))
        )
        # A product would read beyond its memory where a column is too large.
        self._similarity.check_format()

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        train: np.ndarray,
        neighbours: int = 200,
        weighting: str = "bm25",
    ) -> Self:
        """Fits on rows of `dataset.interactions`; needs `implicit`.

        Args:
            dataset: The data.
            train: `[num_train]` rows to learn from, such as a split's `train`.
            neighbours: Most similar items kept for each item.
            weighting: `cosine`, `tfidf` or `bm25`, as in `baselines.ItemKnn`.

        Raises:
            ValueError: No rows, or an unknown weighting.
            ImportError: `implicit` is not installed.
        """
        fitted = baselines.ItemKnn(neighbours, weighting).fit(dataset, train)
        items = np.unique(dataset.item_keys[train])
        kept = sparse.csr_array(fitted.similarity)[items][:, items]
        return cls(items, kept.data, kept.indices, kept.indptr)

    def _scores(self, history: Ragged) -> np.ndarray:
        scores = (self._matrix(history) @ self._similarity).toarray()
        scores[scores <= 0] = NO_SCORE
        return scores


class IAls(Collaborative):
    """iALS (Hu, Koren and Volinsky, ICDM 2008): item vectors, and a vector solved for each history.

        (V'V + (alpha - 1) sum over history of v v' + regularization I) user
            = alpha * sum over history of v

    The user's vector needs no training matrix, so a user who came after the training is no
    different from the others. Answers are those of `implicit`, which only `fit` needs.

        IAls.fit(dataset, split.train)(requests, k=500)

    Args:
        items: `[num_known]` int64, ascending: keys of the items with a training row.
        vectors: `[num_known, factors]` float32.
        alpha: Weight of an observed pair; all others weigh 1.
        regularization: L2 penalty.
    """

    kind = "ials"
    SETTINGS = ("alpha", "regularization")
    ARRAYS = ("items int [num_known]", "vectors float [num_known, factors]")

    def __init__(
        self, items: np.ndarray, vectors: np.ndarray, alpha: float, regularization: float
    ) -> None:
        super().__init__(items)
        self.vectors, self.alpha, self.regularization = vectors, alpha, regularization
        self._gram = vectors.T @ vectors + regularization * np.eye(
            vectors.shape[1], dtype=np.float32
        )
        # A last vector of zeros pads short histories.
        self._padded = np.concatenate([vectors, np.zeros_like(vectors[:1])])

    @classmethod
    def fit(cls, dataset: Dataset, train: np.ndarray, **parameters: Any) -> Self:
        """Fits on rows of `dataset.interactions`; needs `implicit`.

        Args:
            dataset: The data.
            train: `[num_train]` rows to learn from, such as a split's `train`.
            **parameters: Of `baselines.IAls`, such as `factors`.

        Raises:
            ValueError: No rows.
            ImportError: `implicit` is not installed.
        """
        model = baselines.IAls(**parameters)
        fitted = model.fit(dataset, train)
        items = np.unique(dataset.item_keys[train])
        return cls(items, fitted.item_vectors[items], model.alpha, model.regularization)

    def user_vectors(self, history: Ragged) -> np.ndarray:
        """`[num_requests, factors]` float32 from rows of places in `items`, none twice in a row."""
        dim = self.vectors.shape[1]
        users = np.zeros((len(history), dim), np.float32)
        # Histories of like length are padded little.
        order = np.argsort(history.lengths, kind="stable")
        cells = np.maximum(history.lengths[order], dim) * dim
        start = 0
        while start < len(order):
            # Rows ascend by length, so the last row of a batch says how wide the batch is.
            fits = np.arange(1, len(order) - start + 1) * cells[start:] <= FOLDED
            rows = order[start : start + max(1, int(fits.sum()))]
            columns = history.take(rows).to_dense(len(self.vectors))
            vectors = self._padded[columns]  # [rows, longest, factors]
            left = vectors.transpose(0, 2, 1) @ vectors
            left *= np.float32(self.alpha - 1)
            left += self._gram
            users[rows] = np.float32(self.alpha) * vectors.sum(1)
            for row, matrix in zip(rows, left):
                users[row] = _solved(matrix, users[row])
            start += len(rows)
        return users

    def _scores(self, history: Ragged) -> np.ndarray:
        return self.user_vectors(history) @ self.vectors.T


def _solved(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """x of `matrix @ x = vector` by Cholesky's method; the matrix is overwritten.

    NumPy's `solve` and its Cholesky method take three times as long for many such systems.

    Args:
        matrix: `[dim, dim]` float32, symmetric and positive definite.
        vector: `[dim]` float32.
    """
    # A symmetric matrix is its transpose, which is in LAPACK's order.
    _, found, failed = scipy.linalg.lapack.sposv(matrix.T, vector, lower=True, overwrite_a=True)
    if failed:
        raise np.linalg.LinAlgError("iALS needs a regularization above 0, and alpha of 0 or more.")
    return found
