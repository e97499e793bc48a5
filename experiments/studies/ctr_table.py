"""The rows of `ctr-1m`, as the published benchmark cuts them: codes, labels and three parts.

RecBole's `ml-1m_context`: MovieLens 1M without ratings of 3, the label is a rating above 3, and a
random tenth each is validation and test. The benchmark's own random order is not published, so
figures agree up to the spread between splits.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from twotower.data.dataset import Dataset
from twotower.ranking.inputs import Field, RankerInputs

PARTS = ("train", "validation", "test")
SPLIT_SEED = 2020


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of codes with labels.

    Attributes:
        inputs: The fields, and the numbers if there are any.
        columns: Name of an input -> `[num_rows, ...]`.
        labels: 1 for a rating above 3, else 0, `[num_rows]` float32.
        ratings: `[num_rows]` float32.
        times: Times of the ratings in seconds, `[num_rows]`; no network reads them.
        part: Row in `PARTS` of each row, `[num_rows]`.
    """

    inputs: RankerInputs
    columns: dict[str, np.ndarray]
    labels: np.ndarray
    ratings: np.ndarray
    times: np.ndarray
    part: np.ndarray

    def rows(self, part: str) -> np.ndarray:
        """The rows of a part."""
        return np.flatnonzero(self.part == PARTS.index(part))

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of these rows."""
        return {name: values[rows] for name, values in self.columns.items()}


def coded(raw: Mapping[str, Any]) -> tuple[list[Field], dict[str, np.ndarray]]:
    """A field for each column, and the codes of its values, from 1 on; 0 for a missing value."""
    fields, columns = [], {}
    for name, values in raw.items():
        codes, known = pd.factorize(np.asarray(values), sort=True)
        fields.append(Field(name, len(known)))
        columns[name] = (codes + 1).astype(np.int32)
    return fields, columns


def make_table(dataset: Dataset, seed: int = SPLIT_SEED) -> Table:
    """The rows of a dataset with ratings and MovieLens' columns.

    >>> # make_table(load_dataset("movielens/1m", "ml-1m")).labels.shape -> (739012,)
    """
    interactions = dataset.interactions
    interactions = interactions[interactions["rating"] != 3].reset_index(drop=True)
    users = dataset.users.set_index("user_id").loc[interactions["user_id"]]
    items = dataset.items.set_index("item_id")
    genres, genre_names = genre_codes(items["genres"])
    row_of_item = items.index.get_indexer(interactions["item_id"])
    raw = {
        "user": interactions["user_id"],
        "age": users["age"],
        "gender": users["gender"],
        "occupation": users["occupation"],
        "item": interactions["item_id"],
        "year": items["year"].to_numpy()[row_of_item],
    }
    fields, columns = coded(raw)
    fields.append(Field("genres", len(genre_names), genres.shape[1]))
    columns["genres"] = genres[row_of_item]
    num_rows = len(interactions)
    order = np.random.default_rng(seed).permutation(num_rows)
    part = np.zeros(num_rows, np.int8)
    tenth = num_rows // 10
    part[order[-2 * tenth : -tenth]], part[order[-tenth:]] = 1, 2
    ratings = interactions["rating"].to_numpy(np.float32)
    labels = (ratings > 3).astype(np.float32)
    times = interactions["timestamp"].to_numpy(np.int64)
    return Table(RankerInputs(tuple(fields)), columns, labels, ratings, times, part)


def genre_codes(genres: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Codes of the genres of each item, `[num_items, most]` padded with 0, and their names."""
    names = sorted({name for found in genres for name in found})
    code = {name: number for number, name in enumerate(names, 1)}
    codes = np.zeros((len(genres), max(1, *map(len, genres))), np.int32)
    for row, found in enumerate(genres):
        codes[row, : len(found)] = [code[name] for name in found]
    return codes, names
