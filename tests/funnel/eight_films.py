"""Eight films, four people who saw some of them, and every source of candidates fitted on that."""

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.funnel.attributes import Attribute
from twotower.funnel.sources.collaborative import Ease, IAls, ItemKnn
from twotower.funnel.sources.context_popularity import ContextPopularity
from twotower.funnel.sources.diverse import Diverse
from twotower.funnel.sources.fresh import Fresh
from twotower.funnel.sources.popularity import Popularity, Trending
from twotower.funnel.sources.search import Search
from twotower.funnel.sources.similar import Similar
from twotower.funnel.sources.two_tower import TwoTower
from twotower.ragged import Ragged
from twotower.retrieval import build

DAY = 86_400
ROWS = [  # user, item, day
    ("u1", 0, 0), ("u1", 1, 0), ("u1", 2, 0), ("u2", 0, 0), ("u2", 1, 10), ("u3", 0, 0),
    ("u3", 5, 20), ("u3", 3, 20), ("u4", 5, 20), ("u4", 4, 20), ("u4", 7, 30),
]  # fmt: skip
DATASET = Dataset(
    "films",
    pd.DataFrame(
        {
            "user_id": [user for user, _, _ in ROWS],
            "item_id": [f"i{item}" for _, item, _ in ROWS],
            "timestamp": [day * DAY for _, _, day in ROWS],
        }
    ),
    pd.DataFrame(
        {
            "item_id": [f"i{key}" for key in range(8)],
            "title": [
                "Tin Moon", "Brass Moon", "Moon over Brass", "Ferry",
                "Café", "Night Train", "The New Train", "Comet",
            ],
            "genres": [("Drama",), (), (), (), (), (), (), ("Drama",)],
            "year": [1999, 2000, 1987, 1952, None, 1999, 2001, 2001],
            "released": [None, 0, 0, 0, 0, 20 * DAY, 40 * DAY, 25 * DAY],
        }
    ),
    pd.DataFrame({"user_id": ["u1", "u2", "u3", "u4"], "age": ["18", "18", "50", "50"]}),
)  # fmt: skip
TRAIN = np.arange(len(ROWS))


class Model:
    """Vectors in the plane; a request's is the mean of its history's, (1, 0) without one."""

    keys = np.arange(8)
    vectors = np.float32(
        [[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1], [0.1, 0.9], [0.2, 0.8], [0.5, 0.5], [0.6, 0.4]]
    )
    catalogue = DATASET.catalogue

    def encode(self, requests: Requests) -> np.ndarray:
        known = [row[row < 8] for row in requests.history]
        means = [self.vectors[row].mean(0) if len(row) else [1, 0] for row in known]
        return np.array(means, np.float32).reshape(-1, 2)

    def retriever(self, name: str = "exact"):
        return build.build(build.IndexConfig(name), self.keys, self.vectors)


MODEL = Model()
AGE = Attribute.of(DATASET, "age")


def needs(module: str, make):
    """`make()`, skipped without an extra package."""

    @functools.cache
    def made():
        pytest.importorskip(module)
        return make()

    return made


SOURCES = {
    "two_tower": lambda: TwoTower(MODEL),
    "ease": lambda: Ease.fit(DATASET, TRAIN, l2=1.0),
    "item_knn": needs("implicit", lambda: ItemKnn.fit(DATASET, TRAIN, 3, "cosine")),
    "ials": needs("implicit", lambda: IAls.fit(DATASET, TRAIN, factors=4)),
    "popularity": lambda: Popularity.fit(DATASET, TRAIN),
    "trending": lambda: Trending.fit(DATASET, TRAIN, half_life=10),
    "context": lambda: ContextPopularity.fit(DATASET, TRAIN, [AGE, Attribute("hour")], prior=1),
    "bm25": needs("bm25s", lambda: Search.bm25(DATASET.catalogue)),
    "tfidf": needs("bm25s", lambda: Search.tfidf(DATASET.catalogue)),
    "similar": lambda: Similar(MODEL, events=2, decay=0.5),
    "diverse": lambda: Diverse.fit(MODEL, clusters=3, nearest=2),
    "fresh": lambda: Fresh.rare(MODEL, DATASET, TRAIN, fewer_than=2),
}


def ask(*history: list[int], exclude: list[list[int]] | None = None, **columns) -> Requests:
    """Requests with these histories, which are excluded; `exclude` excludes further keys."""
    rows = Ragged.from_rows(history)
    more = [[]] * len(history) if exclude is None else exclude
    nothing = np.full(len(rows.values), np.nan, np.float32)
    requests = Requests.of(DATASET.catalogue, [[]] * len(history), **columns)
    return dataclasses.replace(
        requests,
        history=rows,
        history_time=Ragged(np.full(len(rows.values), -1), rows.offsets),
        history_rating=Ragged(nothing, rows.offsets),
        exclude=Ragged.from_rows([[*one, *two] for one, two in zip(history, more)]),
    )


def top(source, requests: Requests, k: int = 8) -> list[list[int]]:
    found = source(requests, k)
    return [row[:count].tolist() for row, count in zip(found.keys, found.counts)]
