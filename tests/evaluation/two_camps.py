"""Two camps of users who never watch the same items, and baselines fitted on them."""

import dataclasses

import numpy as np
import pandas as pd

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.evaluation import baselines
from twotower.ragged import Ragged

# Two camps that never mix: users 0-9 watch some of items 0-4, users 10-19 some of items 5-9. Items
# 10 and 11 have no row. Item 0 is the most popular, by one row.
NUM_ITEMS = 12


def camps() -> Dataset:
    rows = [(user, 5 * (user // 10) + (user + step) % 5) for user in range(20) for step in range(3)]
    users, items = zip(*rows, (9, 0))
    interactions = pd.DataFrame(
        {
            "user_id": [str(user) for user in users],
            "item_id": [str(item) for item in items],
            "timestamp": range(len(users)),
        }
    )
    return Dataset(
        "camps",
        interactions,
        pd.DataFrame({"item_id": [str(item) for item in range(NUM_ITEMS)]}),
        pd.DataFrame({"user_id": [str(user) for user in range(20)]}),
    )


def cases_of(*histories, exclude=True) -> EvalCases:
    history = Ragged.from_rows(histories)
    return EvalCases(
        user_id=np.full(len(histories), "nobody", object),
        history=history,
        history_time=history,
        history_rating=history,
        exclude=history if exclude else Ragged.empty(len(histories)),
        targets=Ragged.empty(len(histories)),
        time=np.full(len(histories), -1),
    )


def fitted(name: str, **parameters) -> baselines.Baseline:
    dataset = camps()
    return baselines.make(name, **parameters).fit(dataset, np.arange(len(dataset.interactions)))


# Penalties for twenty users: EASE with a weak one gives a camp's further items negative weights,
# iALS with a strong one gives everything 0.
SMALL = {
    "popularity": {},
    "ease": {"l2": 100.0},
    "item_knn": {},
    "ials": {"factors": 2, "regularization": 0.1},
}


def content_camps() -> Dataset:
    """The camps with content: items 0 to 4 are comedies of the nineties, 5 to 9 westerns of the
    fifties; 10 is a comedy and 11 a western that nobody has seen."""
    dataset = camps()
    camp = [0] * 5 + [1] * 5 + [0, 1]
    items = dataset.items.assign(
        genres=[("Comedy", "Western")[one : one + 1] for one in camp],
        year=[(1994, 1955)[one] for one in camp],
        title=[f"The {('Laugh', 'Gun')[one]} {row}" for row, one in enumerate(camp)],
    )
    return dataclasses.replace(dataset, items=items)
