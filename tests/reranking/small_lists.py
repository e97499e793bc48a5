"""Small lists to re-rank, and a model of eight items in the plane."""

import types

import numpy as np
import pandas as pd

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.retrieval.candidates import NO_KEY, NO_SCORE, Candidates

GENRES = [("x",), ("x",), ("y",), (), ("x", "y"), ("y", "z"), ("z",), ()]
MAKERS = ["m", "m", "n", "", "n", "m", "m", "n"]
CATALOGUE = Catalogue(
    pd.DataFrame({"item_id": [f"i{key}" for key in range(8)], "genres": GENRES, "maker": MAKERS})
)
TAGS = np.array([[tag in genres for tag in "xyz"] for genres in GENRES], np.uint8)
ANGLES = np.radians([0, 0, 90, 0, 45, 120, 180, 20])
MODEL = types.SimpleNamespace(
    keys=np.arange(8),
    vectors=np.float32([3, 1, 1, 0, 1, 1, 2, 1])[:, None]
    * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32),
    catalogue=CATALOGUE,
)


def ask(*histories, **more) -> Requests:
    return Requests.of(CATALOGUE, [[f"i{key}" for key in keys] for keys in histories], **more)


def listed(*rows: list[int], scores: list[list[float]] | None = None) -> Candidates:
    """Lists of keys, best first; the scores fall by 1 each if there are none."""
    width = max(map(len, rows), default=0)
    keys = np.full((len(rows), width), NO_KEY)
    values = np.full((len(rows), width), NO_SCORE)
    for number, row in enumerate(rows):
        keys[number, : len(row)] = row
        values[number, : len(row)] = scores[number] if scores else -np.arange(len(row))
    return Candidates(keys, values, np.array([*map(len, rows)], np.int64), {"item": keys * 10})


def shown(candidates: Candidates) -> list[list[int]]:
    """The lists without what stands behind their ends."""
    return [row[:count].tolist() for row, count in zip(candidates.keys, candidates.counts)]
