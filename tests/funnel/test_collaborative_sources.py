"""EASE, implicit ALS and item-item neighbours: by hand, and against the baselines."""

import dataclasses

import numpy as np
import pytest
from eight_films import DATASET, SOURCES, TRAIN, ask, top

from twotower.evaluation import baselines
from twotower.funnel.sources.collaborative import IAls
from twotower.ragged import Ragged


def test_ease_scores_as_the_baseline():
    baseline = baselines.Ease(1.0).fit(DATASET, TRAIN)
    requests = ask([0], [5, 3])
    found = SOURCES["ease"]()(requests, 8)
    scores = np.take_along_axis(baseline.scores(requests), np.maximum(found.keys, 0), axis=1)
    np.testing.assert_allclose(found.scores[found.valid], scores[found.valid], rtol=1e-5)


def test_long_histories_are_multiplied_densely(monkeypatch):
    source, requests = SOURCES["ease"](), ask([0], [5, 3], [0, 1, 2], [])
    found = source(requests, 8)
    for share in (0, 2 / 6, 1):
        monkeypatch.setattr("twotower.funnel.sources.collaborative.LONG", share)
        again = source(requests, 8)
        assert again.keys.tolist() == found.keys.tolist()
        np.testing.assert_allclose(again.scores, found.scores, rtol=1e-5)


def test_ials_solves_many_systems_as_numpy_does(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    source = IAls(np.arange(40), vectors, alpha=8, regularization=5)
    rows = [rng.choice(40, size=size, replace=False) for size in rng.integers(0, 30, size=50)]
    gram = vectors.T.astype(float) @ vectors + 5 * np.eye(6)
    left = [gram + 7 * vectors[row].T.astype(float) @ vectors[row] for row in rows]
    expected = [np.linalg.solve(a, 8 * vectors[row].sum(0)) for a, row in zip(left, rows)]
    for cells in (1, 2**20):
        monkeypatch.setattr("twotower.funnel.sources.collaborative.FOLDED", cells)
        users = source.user_vectors(Ragged.from_rows(rows))
        np.testing.assert_allclose(users, expected, atol=1e-5)
    with pytest.raises(np.linalg.LinAlgError, match="regularization above 0"):
        IAls(np.arange(1), np.zeros((1, 2), np.float32), 1, 0).user_vectors(Ragged.from_rows([[0]]))


def test_ials_solves_for_the_user():
    # V'V + l2 = 1 + 4 + 1 = 6. History {key 5, vector 2}: 6 + (3 - 1) * 4 = 14 on the left and
    # 3 * 2 = 6 on the right, so the user is 3/7.
    source = IAls(np.array([3, 5]), np.float32([[1], [2]]), alpha=3, regularization=1)
    requests = dataclasses.replace(ask([5], [5, 5], []), exclude=Ragged.empty(3))
    found = source(requests, 5)
    np.testing.assert_allclose(found.scores[:2], [[6 / 7, 3 / 7]] * 2, rtol=1e-6)
    assert found.keys.tolist() == [[5, 3], [5, 3], [-1, -1]]


def test_ials_folds_in_as_implicit_does():
    pytest.importorskip("implicit")
    model = baselines.IAls(factors=4).fit(DATASET, TRAIN)
    requests = ask([0, 5], [1, 2, 4, 7], [3])
    found = IAls.fit(DATASET, TRAIN, factors=4)(requests, 8)
    scores = np.take_along_axis(model.scores(requests), np.maximum(found.keys, 0), axis=1)
    np.testing.assert_allclose(found.scores[found.valid], scores[found.valid], atol=1e-5)


def test_item_knn_answers_nothing_dissimilar():
    # Item 4 was only rated with 5 and 7.
    assert set(top(SOURCES["item_knn"](), ask([4]))[0]) == {5, 7}
