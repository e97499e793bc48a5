"""Item-kNN by hand."""

import numpy as np
import pandas as pd
import pytest
from two_camps import cases_of, fitted

from twotower.data.dataset import Dataset
from twotower.evaluation.baselines.item_knn import ItemKnn


def test_item_knn_by_hand():
    # a has items 0 and 1, b has 0, c has 1 and 2. Cosines: 0 and 1 share one user of two each,
    # 1 / (sqrt 2 sqrt 2) = 1/2; 1 and 2 share c, 1 / (sqrt 2 sqrt 1) = .70711; 0 and 2 nobody.
    dataset = Dataset(
        "three items",
        pd.DataFrame({"user_id": list("aabcc"), "item_id": list("01012"), "timestamp": range(5)}),
        pd.DataFrame({"item_id": list("0123")}),
        pd.DataFrame({"user_id": list("abc")}),
    )
    knn = ItemKnn(weighting="cosine").fit(dataset, np.arange(5))
    scores = knn.scores(cases_of([0], [1], [0, 2], exclude=False))
    expected = [[1, 0.5, 0, 0], [0.5, 1, 0.70711, 0], [1, 1.20711, 1, 0]]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    # One neighbour each is the item itself.
    knn = ItemKnn(neighbours=1, weighting="cosine").fit(dataset, np.arange(5))
    scores = knn.scores(cases_of([0], [1], [0, 2], exclude=False))
    np.testing.assert_allclose(scores, [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]], atol=1e-5)


@pytest.mark.parametrize("weighting", ["cosine", "tfidf", "bm25"])
def test_item_knn_keeps_as_many_neighbours_as_asked(weighting):
    knn = fitted("item_knn", neighbours=2, weighting=weighting)
    # A history of one item scores at most two items, itself included.
    scores = knn.scores(cases_of(*[[item] for item in range(10)], exclude=False))
    assert ((scores > 0).sum(1) <= 2).all() and (scores > 0).any()
