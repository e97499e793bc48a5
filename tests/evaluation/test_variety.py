"""Novelty and diversity of lists, by hand."""

import numpy as np
import pandas as pd
import pytest

from twotower.data.dataset import Dataset
from twotower.data.splits import Split
from twotower.evaluation.variety import VARIETY, variety

# Of four people all have a, two b, and one c.
ROWS = [("u1", "a"), ("u2", "a"), ("u3", "a"), ("u4", "a"), ("u1", "b"), ("u2", "b"), ("u3", "c")]
ITEMS = pd.DataFrame(
    {"item_id": ["a", "b", "c"], "genres": [("Drama",), ("Drama", "War"), ("Comedy",)]}
)


def films(items: pd.DataFrame) -> Dataset:
    rows = pd.DataFrame(ROWS, columns=["user_id", "item_id"]).assign(timestamp=range(len(ROWS)))
    users = pd.DataFrame({"user_id": ["u1", "u2", "u3", "u4"]})
    return Dataset("films", rows, items, users)


def test_popular_items_are_not_new_and_common_genres_are_near():
    split = Split("random", "test", 0, np.arange(len(ROWS)), np.arange(3), "before", True, None)
    lists = np.array([[0, 1, -1], [0, 2, -1]])
    found = variety(lists, films(ITEMS), split)
    # -log2 of the shares 1, 1/2 and 1/4 is 0, 1 and 2: the means are 1/2 and 1.
    assert found["novelty@10"]["mean"] == pytest.approx(0.75)
    # a and b have one of two genres in common, a and c none.
    assert found["genre_distance@10"]["mean"] == pytest.approx(0.75)
    assert tuple(found) == VARIETY
    assert [*variety(lists, films(ITEMS[["item_id"]]), split)] == ["novelty@10"]
