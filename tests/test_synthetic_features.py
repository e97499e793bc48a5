"""Each feature raises recall where it was planted: trained with it and without it, same seed.

A feature can only show where no other one replaces it: an item's columns beside an item id that
every item trains well add little. So each is left out of a setting in which it is needed. Models
are compared on the same questions, with the interval of the paired difference.
"""

import dataclasses
import functools
import tempfile

import numpy as np
import pandas as pd
import pytest
import tiny

from twotower.data import synthetic
from twotower.data.dataset import Dataset
from twotower.data.splits import Split, make_split
from twotower.evaluation import Report, evaluate
from twotower.fitting import fit
from twotower.ragged import Ragged
from twotower.training import Training

pytestmark = pytest.mark.slow

CONTENT = ("title", "description", "genres", "maker", "year", "quality", "audio")
PEOPLE = ("gender", "age", "occupation")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A protocol and all features of both towers."""

    protocol: str
    query: tuple[str, ...]
    item: tuple[str, ...]

    def without(self, tower: str, feature: str) -> "Setting":
        left = tuple(name for name in getattr(self, tower) if name != feature)
        assert left != getattr(self, tower), f"{feature} is not in {self}"
        return dataclasses.replace(self, **{tower: left})


# Items that nobody has watched yet are placed by their content.
NEW_ITEMS = Setting("new items", ("user_id", "history"), CONTENT)
YEAR = Setting("new items", ("user_id", "history"), ("genres", "year"))
# Users of whom only their demographics are known.
NEW_USERS = Setting("random", PEOPLE, ("item_id",))
GENDER = Setting("random", ("gender", "age"), ("item_id",))
USERS = Setting("random", ("user_id", *PEOPLE), ("item_id",))
PAST = Setting("random", ("history", *PEOPLE), ("item_id",))
ITEMS = Setting("random", ("user_id",), ("item_id", "genres", "year"))
# Requests at a known time.
NOW = Setting(
    "temporal-successive+time",
    ("user_id", "history", "time", "device", "search_text"),
    ("item_id", "genres", "maker", "age"),
)


@functools.cache
def dataset() -> Dataset:
    """1,500 users, 1,200 items, 72,000 watches; few words and strong contexts."""
    config = synthetic.SyntheticConfig(
        num_users=1500,
        num_items=1200,
        num_interactions=120_000,
        num_clusters=8,
        words_per_cluster=6,
        context_scale=1.5,
    )
    return synthetic.generate(config).dataset


@functools.cache
def split(protocol: str) -> Split:
    if protocol != "new items":
        return make_split(dataset(), protocol, "test")
    # A third of the items has no training row; who watched them is asked.
    whole = make_split(dataset(), "random", "test")
    new = whole.candidates[np.random.default_rng(0).random(len(whole.candidates)) < 1 / 3]
    is_new = np.isin(dataset().item_keys, new)
    rows = np.flatnonzero(is_new & dataset().positive)
    by_user = Ragged.group(
        dataset().item_keys[rows], dataset().user_rows[rows], len(dataset().users)
    )
    users = pd.Index(dataset().users["user_id"]).get_indexer(whole.cases.user_id)
    cases = dataclasses.replace(whole.cases, targets=by_user.take(users))
    return dataclasses.replace(
        whole,
        train=whole.train[~is_new[whole.train]],
        candidates=new,
        # Nothing to exclude: histories hold new items as unknown ones, and a row without a
        # training example is asked for as all others are.
        cases=dataclasses.replace(cases, exclude=Ragged.empty(len(cases))).take(
            cases.targets.lengths > 0
        ),
    )


@functools.cache
def report(setting: Setting) -> Report:
    """The figures of the last epoch of a training."""
    head = {"hidden": (64,), "dim": 32}
    recipe = tiny.recipe(
        query={
            "features": setting.query,
            "user_dim": 32,
            "category_dim": 8,
            "history_dim": 32,
            "unknown_rate": 0.1,
            **head,
        },
        item={"features": setting.item, "id_dim": 32, "token_dim": 16, **head},
        task={"temperature": 0.15},
        examples={"batch_size": 1024, "max_history": 50},
        fit={"epochs": 4, "learning_rate": 5e-3, "warmup_steps": 20},
    )
    training = Training(dataset(), split(setting.protocol), recipe)
    with tempfile.TemporaryDirectory() as folder:
        fit(training, folder, select=False)
    return evaluate(training.recommender(), training.split)


def loss_without(setting: Setting, tower: str, feature: str) -> dict:
    """recall_micro@20 with the feature minus without, `{"mean", "low", "high"}`."""
    without = report(setting.without(tower, feature))
    return report(setting).compare(without, "recall_micro@20")


if __name__ == "__main__":
    import sys
    import time

    which = {
        "content": [(NEW_ITEMS, "item", f) for f in CONTENT],
        "few": [(YEAR, "item", "year"), (GENDER, "query", "gender")],
        "people": [(NEW_USERS, "query", f) for f in PEOPLE],
        "users": [
            (USERS, "query", "user_id"),
            (ITEMS, "item", "item_id"),
            (PAST, "query", "history"),
        ],
        "now": [(NOW, "query", f) for f in ("time", "device", "search_text")]
        + [(NOW, "item", "age")],
    }
    for name in sys.argv[1:]:
        for setting, tower, feature in which[name]:
            t = time.time()
            d = loss_without(setting, tower, feature)
            print(
                feature,
                round(report(setting).metrics["recall_micro@20"]["mean"], 4),
                {k: round(v, 4) for k, v in d.items()},
                round(time.time() - t),
                flush=True,
            )
