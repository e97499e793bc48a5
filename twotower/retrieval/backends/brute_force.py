"""Exact search by one matrix product: the reference for all others, enough for small catalogues."""

import numpy as np

from twotower.retrieval.base import Retriever


class BruteForceIndex(Retriever):
    """Scores every item. There is nothing to approximate, tune or build.

    numpy's BLAS decides on threads (OPENBLAS_NUM_THREADS); the flat index has an argument.

    >>> index = BruteForceIndex().build(np.array([7, 8, 9]), np.eye(3, dtype=np.float32))
    >>> index.search(np.float32([[1, 3, 2]]), k=2).keys.tolist()
    [[8, 9]]
    """

    backend = "exact"
    is_exact = True

    def _build(self, vectors: np.ndarray) -> None:
        pass  # the base class keeps the vectors

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._store.built.best(queries, k)
