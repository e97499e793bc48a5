"""Popularity: the same items for everybody."""

import numpy as np
import scipy.sparse as sparse

from twotower.evaluation.baselines.baseline import Baseline


class Popularity(Baseline):
    """The items with the most training rows, for everybody.

    Popularity().fit(dataset, split.train).recommend(split.cases, k=10)
    """

    def _fit(self, matrix: sparse.csr_matrix) -> None:
        pass

    def _score(self, histories: sparse.csr_matrix) -> np.ndarray:
        return np.repeat(self._counts[None, :], histories.shape[0], axis=0)
