"""Weights of heads at request time."""

import numpy as np
import pytest

from twotower.ranking.objectives import sigmoid, weighted_sum

VALUES = {"watch": np.array([[0.5, 0.75, 0.2]]), "rating": np.array([[4.0, 1.0, 3.0]])}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"watch": 1}, [0.5, 0.75, 0.2]),
        ({"watch": 4, "rating": 1}, [6, 4, 3.8]),
        ({"watch": 4, "rating": -1}, [-2, 2, -2.2]),
        ({"watch": 0, "rating": 2}, [8, 2, 6]),
    ],
)
def test_a_weighted_sum(weights, expected):
    np.testing.assert_allclose(weighted_sum(VALUES, weights), [expected])


def test_probabilities_of_logits():
    np.testing.assert_allclose(sigmoid(np.log([1, 3, 0.25])), [1 / 2, 3 / 4, 1 / 5])
    assert sigmoid(np.array([-1e4, 1e4])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "must not all be 0"),
        ({"watch": 0.0, "rating": 0.0}, "must not all be 0"),
        ({"watch": float("nan")}, "must be finite numbers; got {'watch': nan}"),
        ({"watch": float("inf"), "rating": 1.0}, "must be finite"),
        ({"click": 1.0}, r"no head is called \['click'\]; the ranker has \['rating', 'watch'\]"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_sum(VALUES, weights)
