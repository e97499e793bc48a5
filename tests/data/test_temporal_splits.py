"""Temporal splits: what is younger than a quantile of the times is asked."""

import pandas as pd
import pytest
from small_splits import dataset_of, rows_of

from twotower.data.dataset import Dataset
from twotower.data.splits import make_split


# Times 1..20, every item five times or more, so the 0.9 quantile is 18.1: rows 18 and 19 are test.
# Of the 18 others (times 1..18) it is 16.3: rows 16 and 17 are validation.
def temporal_data(last_items=(2, 3)):
    users = ["a"] * 9 + ["b"] * 9 + ["b", "b"]
    items = [0, 1, 2, 3] * 4 + [0, 1, *last_items]
    return dataset_of([(u, i, t) for u, i, t in zip(users, items, range(1, 21))], num_items=4)


def test_temporal_by_hand():
    # b saw all four items before the cut, so none of its test rows is a question, ...
    with pytest.raises(ValueError, match="18 training rows and 0 queries"):
        make_split(temporal_data(), "temporal-successive", "test")
    # ... but when b is two people they are: c has no training row.
    dataset = temporal_data()
    frame = dataset.interactions.copy()
    frame.loc[18:, "user_id"] = "c"
    users = pd.DataFrame({"user_id": ["a", "b", "c"]})
    dataset = Dataset("test", frame, dataset.items, users)
    successive = make_split(dataset, "temporal-successive", "test")
    assert rows_of(successive.cases) == [("c", [], [2]), ("c", [2], [3])]
    assert successive.train.tolist() == list(range(18))
    last = make_split(dataset, "temporal-last+time", "test")
    assert rows_of(last.cases) == [("c", [2], [3])]
    assert last.cases.time.tolist() == [20]


def test_a_row_at_the_quantile_itself_trains():
    # Times 0..10: the 0.9 quantile is 9, the time of c's row. Only what is younger is asked.
    users = ["a"] * 9 + ["c", "b"]
    dataset = dataset_of([(user, time % 2, time) for time, user in enumerate(users)])
    split = make_split(dataset, "temporal-successive", "test")
    assert split.train.tolist() == list(range(10))
    assert rows_of(split.cases) == [("b", [], [0])]


def test_temporal_validation_is_the_same_cut_on_the_training_rows():
    dataset = temporal_data()
    frame = dataset.interactions.copy()
    frame.loc[16:17, "user_id"] = "d"
    users = pd.DataFrame({"user_id": ["a", "b", "d"]})
    dataset = Dataset("test", frame, dataset.items, users)
    split = make_split(dataset, "temporal-successive", "validation")
    assert rows_of(split.cases) == [("d", [], [0]), ("d", [0], [1])]
    assert split.train.tolist() == list(range(16))
