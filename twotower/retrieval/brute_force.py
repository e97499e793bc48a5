"""Exact search by one matrix product: the oracle of all others, and enough for small catalogues."""

import numpy as np

from twotower.retrieval.base import BLOCK_BYTES, Retriever


class BruteForceIndex(Retriever):
    """Scores every item; no approximation, nothing to tune, no time to build."""

    is_exact = True

    def _build(self, vectors: np.ndarray) -> None:
        pass  # the base class keeps the vectors

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.empty((len(queries), k), np.int64)
        best = np.empty((len(queries), k), np.float32)
        block = max(1, BLOCK_BYTES // (4 * len(self._vectors)))
        for start in range(0, len(queries), block):
            scores = self._scores(queries[start : start + block], self._vectors)
            rows = slice(start, start + len(scores))
            top = np.argpartition(scores, -k, axis=1)[:, -k:] if k < scores.shape[1] else None
            values = scores if top is None else np.take_along_axis(scores, top, 1)
            order = np.argsort(-values, axis=1, kind="stable")
            positions[rows] = order if top is None else np.take_along_axis(top, order, 1)
            best[rows] = np.take_along_axis(values, order, 1)
        return positions, best
