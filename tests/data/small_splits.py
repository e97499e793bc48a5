"""Rows of three users, small enough to split by hand, and random rows of twenty users."""

import numpy as np
import pandas as pd

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset


def dataset_of(rows, num_items=None, **columns) -> Dataset:
    """From (user, item, time) rows; items are numbered, so that the key of item `n` is n."""
    users, items, times = zip(*rows)
    num_items = max(items) + 1 if num_items is None else num_items
    interactions = pd.DataFrame(
        {"user_id": users, "item_id": [str(item) for item in items], "timestamp": times, **columns}
    )
    return Dataset(
        "test",
        interactions,
        pd.DataFrame({"item_id": [str(item) for item in range(num_items)]}),
        pd.DataFrame({"user_id": sorted(set(users))}),
    )


def rows_of(cases: EvalCases) -> list[tuple]:
    """(user, history, targets) of each case."""
    return [
        (user, history.tolist(), targets.tolist())
        for user, history, targets in zip(cases.user_id, cases.history, cases.targets)
    ]


# File rows 0..8. By time, ties in file order: a has 1, 2, 0, 3; b has 3, 1, 2; c has 0, 3.
SMALL = [
    ("a", 2, 20),  # row 0
    ("b", 1, 15),
    ("a", 1, 10),
    ("b", 2, 15),
    ("a", 0, 20),  # row 4: as old as row 0 and behind it in the file
    ("b", 3, 5),
    ("c", 0, 7),
    ("a", 3, 30),
    ("c", 3, 8),  # row 8
]


def random_data(num_rows=1000, num_users=20, num_items=60, seed=0):
    """Distinct (user, item) pairs at random times."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(num_users * num_items)[:num_rows]
    times = rng.integers(0, 10**6, num_rows).tolist()
    return dataset_of(
        [(f"u{p // num_items:02d}", int(p % num_items), t) for p, t in zip(pairs, times)]
    )
