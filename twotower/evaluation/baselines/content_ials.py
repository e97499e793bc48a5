"""iALS for new items, from their genres, decade and title words."""

import string
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sparse

from twotower.data.dataset import Dataset
from twotower.evaluation.baselines.baseline import MAX_GIB
from twotower.evaluation.baselines.ials import IAls
from twotower.ragged import Ragged


class ContentIAls(IAls):
    """iALS whose new items get vectors from their content, by ridge regression.

        W = (F'F + l2 I)^-1 F'V,   v_new = mean + f_new W

    F are the centred indicators of genres, decade and title words of the items with training rows,
    V their centred iALS vectors. A new item is one without a training row; iALS itself gives it a
    zero vector. A content tower should beat this baseline on new items.

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
        max_gib: float = MAX_GIB,
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
