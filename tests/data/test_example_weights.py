"""Weights of examples, by hand."""

import dataclasses
import warnings

import numpy as np
import pytest
from asked import asked, by_item
from six_ratings import ROWS, by_hand, examples_of, whole

from twotower.data.examples import Examples, ExamplesConfig


def test_weights_by_hand():
    # Ratings 5 4 - 3 2 1 have the mean 3; the missing one counts as that.
    weights = by_item(asked(examples_of("before", weight="rating"), 0), "weight")
    expected = [5 / 3, 4 / 3, 1, 1, 2 / 3, 1 / 3]
    found = [weights[user, item] for user, item, _, _ in ROWS]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert set(by_item(asked(examples_of("before"), 0), "weight").values()) == {1.0}
    with pytest.raises(ValueError, match="no column 'stars'"):
        examples_of("before", weight="stars")
    with pytest.raises(ValueError, match="weights from 'item_id' must be numbers; got"):
        examples_of("before", weight="item_id")
    for values in ([-1.0, 1, 1, 1, 1, 1], [0.0] * 6, [np.nan] * 6):
        with (
            warnings.catch_warnings(action="error"),  # NumPy warns of a mean of nothing
            pytest.raises(ValueError, match="must not be negative, nor all zero or missing"),
        ):
            examples_of("before", by_hand(value=np.float32(values)), weight="value")
    with pytest.raises(ValueError, match="row 2: value is inf; numbers must be finite"):
        values = np.float32([1, 1, np.inf, 1, 1, 1])
        examples_of("before", by_hand(value=values), weight="value")


def test_weights_of_other_rows_do_not_count():
    # Row 5 weighs 1 of 3 in the mean of all; without it the mean of 5 4 3 2 is 3.5.
    dataset = by_hand()
    split = dataclasses.replace(whole(dataset, "before"), train=np.arange(5))
    examples = Examples(dataset, split, ExamplesConfig(weight="rating"))
    assert by_item(asked(examples, 0), "weight")["a", 0] == pytest.approx(5 / 3.5)
