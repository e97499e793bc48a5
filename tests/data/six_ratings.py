"""Six ratings of two users, small enough to work examples and inputs by hand."""

import dataclasses

import numpy as np
import pandas as pd

from twotower.data.dataset import Dataset
from twotower.data.examples import Examples, ExamplesConfig
from twotower.data.splits import Split, make_split

NAN = float("nan")
# By user and time, ties in file order: a rows 0, 2, 3, 5 with items 0, 1, 2, 3; b rows 4, 1 with
# items 0, 1; c no row. Item 4 has no row.
ROWS = [
    ("a", 0, 10, 5.0),
    ("b", 1, 30, 4.0),
    ("a", 1, 20, NAN),
    ("a", 2, 20, 3.0),  # row 3: as old as row 2 and behind it in the file
    ("b", 0, 20, 2.0),
    ("a", 3, 40, 1.0),
]


def by_hand(rows=ROWS, **columns) -> Dataset:
    """The dataset of these rows, with further columns of `interactions`."""
    users, items, times, ratings = zip(*rows)
    interactions = pd.DataFrame(
        {
            "user_id": users,
            "item_id": [f"m{item}" for item in items],
            "timestamp": times,
            "rating": np.float32(ratings),
            **columns,
        }
    )
    items = pd.DataFrame({"item_id": [f"m{item}" for item in range(5)]})
    return Dataset("by hand", interactions, items, pd.DataFrame({"user_id": ["a", "b", "c"]}))


def whole(dataset: Dataset, history: str, protocol: str = "") -> Split:
    """A split that trains on every row; its questions do not matter here."""
    small = make_split(dataset, "loo", "test")
    name = protocol or ("random" if history == "others" else "loo")
    train = np.arange(len(dataset.interactions))
    return dataclasses.replace(small, train=train, history=history, protocol=name)


def examples_of(history: str, dataset: Dataset | None = None, protocol: str = "", **config):
    """Examples of a split that trains on every row."""
    dataset = by_hand() if dataset is None else dataset
    return Examples(dataset, whole(dataset, history, protocol), ExamplesConfig(**config))
