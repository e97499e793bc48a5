"""Leave-one-out splits: each user's last row is asked, and the one before it for validation."""

import numpy as np
import pytest
from small_splits import SMALL, dataset_of, random_data, rows_of

from twotower.data.splits import make_split


def test_leave_one_out_by_hand():
    dataset = dataset_of(SMALL)
    test, validation = make_split(dataset, "loo", "test"), make_split(dataset, "loo")
    assert rows_of(test.cases) == [("a", [1, 2, 0], [3]), ("b", [3, 1], [2])]
    assert rows_of(validation.cases) == [("a", [1, 2], [0]), ("b", [3], [1])]
    # c has two rows only: it is not asked, and both its rows train.
    for split in (test, validation):
        assert split.train.tolist() == [0, 2, 5, 6, 8]
        assert split.candidates.tolist() == [0, 1, 2, 3]
        # Training rows 0, 2, 5, 6, 8 are of items 2, 1, 3, 0, 3.
        assert split.item_counts.tolist() == [1, 1, 1, 2]
        assert split.history == "before" and split.seen_excluded


def test_ties_are_broken_by_the_file():
    # One user, one second: the last line of the file is the test target, whatever its item.
    rows = [("a", item, 9) for item in (3, 1, 0, 2)]
    assert rows_of(make_split(dataset_of(rows), "loo", "test").cases) == [("a", [3, 1, 0], [2])]
    assert rows_of(make_split(dataset_of(rows[::-1]), "loo", "test").cases) == [
        ("a", [2, 0, 1], [3])
    ]


def test_five_core_drops_items_with_fewer_than_five_rows():
    # Item 0 has five rows, item 1 has four. Without item 1 each user has one or two rows left
    # but u0, whose rows are of items 0, 2, 3 and 4 with five rows each.
    rows = [(f"u{user}", item, user) for user in range(5) for item in (0, 2, 3, 4)]
    rows += [(f"u{user}", 1, 100) for user in range(4)]
    five, every = (make_split(dataset_of(rows), name, "test") for name in ("loo-5core", "loo"))
    assert five.candidates.tolist() == [0, 2, 3, 4]
    assert every.candidates.tolist() == [0, 1, 2, 3, 4]
    assert rows_of(five.cases)[0] == ("u0", [0, 2, 3], [4])
    assert rows_of(every.cases)[0] == ("u0", [0, 2, 3, 4], [1])


@pytest.mark.parametrize("protocol", ["loo", "loo-5core"])
def test_validation_rows_of_loo_never_train(protocol):
    dataset = random_data(num_rows=1100)
    validation, test = make_split(dataset, protocol), make_split(dataset, protocol, "test")
    np.testing.assert_array_equal(validation.train, test.train)
    # The test query has seen what validation asked.
    for asked, history in zip(validation.cases.targets, test.cases.history):
        assert history[-1] == asked[0]
