"""The interface of all baselines: fitted on training rows, they score the whole catalogue."""

import abc
from typing import Self

import numpy as np
import scipy.sparse as sparse
from absl import logging

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.evaluation.evaluate import from_scores
from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates

# Memory in GiB that fitting may take by default.
MAX_GIB = 4.0


class Baseline(abc.ABC):
    """Scores the whole catalogue for each request.

    A request whose history has no item of the training rows gets the most popular items.

        ease = make("ease").fit(dataset, split.train, split.candidates)
        report = evaluate(ease.recommend, split)
    """

    def fit(
        self,
        dataset: Dataset,
        train: np.ndarray,
        candidates: np.ndarray | None = None,
        max_gib: float = MAX_GIB,
    ) -> Self:
        """Fits on rows of `dataset.interactions`.

        Args:
            dataset: The data.
            train: `[num_train]` rows to learn from, such as a split's `train`.
            candidates: `[num_candidates]` keys that may be answered, such as a split's. By default
                the items that have a training row, since these methods know no others.
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
                f"more than the {max_gib:g} that are allowed. Take item_knn or ials, whose memory "
                "grows with the number of items and not with its square; or allow more (max_gib, "
                "or --max_gib of evaluate.py)."
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
        """The best `k` items of each request.

        Raises:
            ValueError: `fit` was not called before.
        """
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
