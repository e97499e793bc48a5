"""What a model has to beat: popularity, item-kNN, EASE and iALS, through the same evaluator."""

import abc

import numpy as np
import scipy.sparse

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.evaluation import from_scores
from twotower.retrieval.candidates import Candidates


class Baseline(abc.ABC):
    """Scores all items from the items of a history."""

    def fit(self, dataset: Dataset, train: np.ndarray, candidates: np.ndarray) -> "Baseline":
        """Learns from the rows `train` of `dataset.interactions`; answers only `candidates`."""
        users, items = dataset.user_rows[train], dataset.item_keys[train]
        shape = len(dataset.users), len(dataset.items)
        matrix = scipy.sparse.csr_matrix((np.ones(len(train), np.float32), (users, items)), shape)
        matrix.data[:] = 1  # a repeated row counts once
        self.num_items = shape[1]
        self.popularity = np.asarray(matrix.sum(0), np.float32).ravel()
        self._fit(matrix)
        self._recommend = from_scores(self._with_popularity, candidates)
        return self

    def recommend(self, cases: EvalCases, k: int) -> Candidates:
        """The best `k` items of each case that it does not exclude."""
        return self._recommend(cases, k)

    def _with_popularity(self, cases: EvalCases) -> np.ndarray:
        history = scipy.sparse.csr_matrix(
            (
                np.ones(len(cases.history.values), np.float32),
                cases.history.values,
                cases.history.offsets,
            ),
            (len(cases), self.num_items),
        )
        scores = np.asarray(self._score(history), np.float32)
        # Nothing is known of a user without history but what everybody likes.
        scores[cases.history.lengths == 0] = self.popularity
        return scores

    def _fit(self, matrix: scipy.sparse.csr_matrix) -> None:
        """Learns from `[num_users, num_items]` of ones."""

    @abc.abstractmethod
    def _score(self, history: scipy.sparse.csr_matrix) -> np.ndarray:
        """`[num_cases, num_items]` from the cases' histories as ones."""


class Popularity(Baseline):
    """The number of an item's training rows."""

    def _score(self, history):
        return np.tile(self.popularity, (history.shape[0], 1))


class Ease(Baseline):
    """Embarrassingly shallow autoencoder (Steck, WWW 2019), equation 8.

    B = I - P diag(1 / diag(P)) with P = (X'X + l2 I)^-1; scores are X B.

    Args:
        l2: Ridge on the item-item weights.
    """

    def __init__(self, l2: float = 500.0) -> None:
        self.l2 = l2

    def _fit(self, matrix):
        gram = np.asarray((matrix.T @ matrix).todense(), np.float64)
        gram[np.diag_indices_from(gram)] += self.l2
        inverse = np.linalg.inv(gram)
        self.weights = (-inverse / np.diag(inverse)).astype(np.float32)
        np.fill_diagonal(self.weights, 0)

    def _score(self, history):
        return history @ self.weights


class ItemKnn(Baseline):
    """Sum of the cosines between an item and the history's items, the nearest ones only.

    Args:
        neighbours: Items that count for an item of the history.
        shrink: Added to the denominator, against chance similarity of rare items.
    """

    def __init__(self, neighbours: int = 200, shrink: float = 20.0) -> None:
        self.neighbours, self.shrink = neighbours, shrink

    def _fit(self, matrix):
        gram = np.asarray((matrix.T @ matrix).todense(), np.float32)
        norm = np.sqrt(np.diag(gram))
        similarity = gram / (np.outer(norm, norm) + self.shrink)
        np.fill_diagonal(similarity, 0)
        keep = min(self.neighbours, len(similarity) - 1)
        cut = -np.partition(-similarity, keep - 1, axis=1)[:, keep - 1]
        similarity[similarity < cut[:, None]] = 0
        self.weights = scipy.sparse.csr_matrix(similarity)

    def _score(self, history):
        return (history @ self.weights).todense()


class IAls(Baseline):
    """Implicit alternating least squares (Hu, Koren and Volinsky, ICDM 2008) of `implicit`.

    A case's user vector is folded in from its history, so that users without a training row have
    one, too.

    Args:
        factors: Length of the vectors.
        alpha: Weight of an observed interaction over an unobserved one.
        regularization: Ridge on the vectors.
        iterations: Alternations.
        seed: Of the start.
    """

    def __init__(
        self,
        factors: int = 64,
        alpha: float = 4.0,
        regularization: float = 10.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> None:
        self.factors, self.alpha, self.regularization = factors, alpha, regularization
        self.iterations, self.seed = iterations, seed

    def _fit(self, matrix):
        try:
            from implicit.cpu.als import AlternatingLeastSquares
        except ImportError as error:
            raise ImportError('iALS needs implicit: pip install "twotower[funnel]"') from error
        self.model = AlternatingLeastSquares(
            factors=self.factors,
            alpha=self.alpha,
            regularization=self.regularization,
            iterations=self.iterations,
            random_state=self.seed,
        )
        self.model.fit(matrix, show_progress=False)

    def _score(self, history):
        users = self.model.recalculate_user(np.arange(history.shape[0]), history)
        return users @ self.model.item_factors.T


BASELINES = {"popularity": Popularity, "ease": Ease, "item_knn": ItemKnn, "ials": IAls}


def make(name: str) -> Baseline:
    """A baseline by name, with its defaults.

    Raises:
        ValueError: An unknown name.
    """
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}; there are {sorted(BASELINES)}.")
    return BASELINES[name]()
