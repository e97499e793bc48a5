"""EASE by hand, as the least squares problem that it solves, and its memory."""

import tracemalloc

import numpy as np
import pandas as pd
from two_camps import cases_of

from twotower.data.dataset import Dataset
from twotower.evaluation.baselines.ease import Ease
from twotower.ragged import Ragged


def test_ease_by_hand():
    # Three users, two items: a has both, b has item 0, c has item 1. X'X = [[2, 1], [1, 2]], with
    # l2 = 1 G = [[3, 1], [1, 3]] and P = [[3, -1], [-1, 3]] / 8. B_01 = -P_01 / P_11 = 1/3.
    dataset = Dataset(
        "two items",
        pd.DataFrame({"user_id": list("aabc"), "item_id": list("0101"), "timestamp": range(4)}),
        pd.DataFrame({"item_id": list("012")}),
        pd.DataFrame({"user_id": list("abc")}),
    )
    ease = Ease(l2=1.0).fit(dataset, np.arange(4))
    scores = ease.scores(cases_of([0], [0, 1], exclude=False))
    np.testing.assert_allclose(scores, [[0, 1 / 3, 0], [1 / 3, 1 / 3, 0]], atol=1e-6)


def test_ease_solves_its_least_squares_problem():
    # EASE minimises |X - XB|^2 + l2 |B|^2 over B with a zero diagonal: column j is the ridge
    # regression of item j on all others.
    rng = np.random.default_rng(0)
    dense = rng.random((30, 6)) < 0.4
    users, items = np.nonzero(dense)
    dataset = Dataset(
        "ridge",
        pd.DataFrame({"user_id": users.astype(str), "item_id": items.astype(str), "timestamp": 0}),
        pd.DataFrame({"item_id": [str(item) for item in range(6)]}),
        pd.DataFrame({"user_id": [str(user) for user in range(30)]}),
    )
    ease = Ease(l2=2.0).fit(dataset, np.arange(len(users)))
    weights = ease.scores(cases_of(*[[item] for item in range(6)], exclude=False))
    for item in range(6):
        others = np.delete(np.arange(6), item)
        x, y = dense[:, others].astype(float), dense[:, item].astype(float)
        ridge = np.linalg.solve(x.T @ x + 2.0 * np.eye(5), x.T @ y)
        np.testing.assert_allclose(weights[others, item], ridge, atol=1e-5)


def test_ease_takes_what_it_says():
    # 700 items: 12 bytes a pair are 5.9 MB. A plain inverse of the same takes four times that.
    rng = np.random.default_rng(0)
    users, items = np.repeat(np.arange(200), 20), rng.integers(0, 700, 4000)
    ids = [str(row) for row in range(700)]
    dataset = Dataset(
        "wide",
        pd.DataFrame({"user_id": users.astype(str), "item_id": items.astype(str), "timestamp": 0}),
        pd.DataFrame({"item_id": ids}),
        pd.DataFrame({"user_id": ids[:200]}),
    )
    ease = Ease()
    counts = np.bincount(items, minlength=700).astype(np.float32)
    matrix = ease_matrix(ease, dataset, counts)
    tracemalloc.start()
    ease._fit(matrix)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = ease._fit_bytes(matrix)
    assert said == 12 * (counts > 0).sum() ** 2
    assert 0.9 * said < peak < 1.5 * said  # and some blocks, which do not grow


def ease_matrix(ease, dataset, counts):
    """What `fit` hands to `_fit`."""
    ease._counts = counts
    return ease._matrix(Ragged.group(dataset.item_keys, dataset.user_rows, len(dataset.users)))
