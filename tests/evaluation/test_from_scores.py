"""Recommenders from scores of all items."""

import numpy as np
import pytest
from small_cases import cases_of

from twotower.evaluation.evaluate import from_scores


def test_from_scores():
    scores = np.float32([[5, 4, 3, 2, 1], [1, 1, 2, 1, 0]])
    cases = cases_of([[0], [0]], exclude=[[0, 4], []])
    for batch_size in (1, 2):
        first = iter(scores)
        recommend = from_scores(
            lambda part: np.stack([next(first) for _ in range(len(part))]),  # noqa: B023
            candidates=np.array([0, 1, 3, 4]),
            batch_size=batch_size,
        )
        found = recommend(cases, 3)
        # The first may not have 0 and 4, item 2 is not a candidate; ties go by key.
        assert found.keys.tolist() == [[1, 3, -1], [0, 1, 3]]
        assert found.counts.tolist() == [2, 3]
    assert from_scores(None)(cases.take([]), 3).keys.shape == (0, 3)


def test_from_scores_takes_the_exact_best():
    rng = np.random.default_rng(0)
    scores = rng.random((50, 300)).astype(np.float32)
    cases = cases_of([[0]] * 50)
    found = from_scores(lambda part: scores, batch_size=50)(cases, 20)
    np.testing.assert_array_equal(found.keys, np.argsort(-scores, axis=1)[:, :20])


def test_scores_that_are_none():
    cases = cases_of([[0], [1]])
    with pytest.raises(ValueError, match="1 NaN"):
        from_scores(lambda part: np.array([[1, 2], [np.nan, 1]]))(cases, 2)
    with pytest.raises(ValueError, match=r"expected scores \[2, num_items\]"):
        from_scores(lambda part: np.ones((3, 2)))(cases, 2)
