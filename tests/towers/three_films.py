"""Three made-up films with a column of every kind, two queries, and towers with all features."""

import numpy as np
import pandas as pd

from twotower.tf import tf
from twotower.towers.history.config import MeanConfig
from twotower.towers.item import ItemConfig, item_tower
from twotower.towers.query import QueryConfig, query_tower

ITEMS = pd.DataFrame(
    {
        "item_id": ["m1", "m2", "m3"],
        "title": ["Tin Moon", "Brass Moon", "Ferry"],
        "genres": [("drama", "war"), ("drama",), ()],
        "maker": ["Ann", "Bob", "Ann"],
        "year": [1950, 1999, 2000],
        "sound": [np.array([1.0, 2.0]), np.array([0.0, 1.0]), np.array([3.0, 3.0])],
        "awards": [{}, {}, {}],
    }
)
RAW_ITEMS = {
    "item_id": tf.constant(["m1", "m3", "new"]),
    "title": tf.constant(["Tin Moon", "Ferry", ""]),
    "genres": tf.constant([["drama", "war"], ["", ""], ["drama", ""]]),
    "maker": tf.constant(["Ann", "Cid", ""]),
    "year": tf.constant([1950.0, 2000.0, float("nan")]),
    "sound": tf.constant([[1.0, 2.0], [3.0, 3.0], [float("nan")] * 2]),
}
QUERIES = {
    "user_id": np.array(["a", "b"], object),
    "history": np.array(["m1", "m2", "m3"], object),
    "time": np.array([5, 6]),
    "search_text": np.array(["tin moon", "moon", ""], object),
    "gender": np.array(["F", "M"], object),
}
RAW_QUERIES = {
    "user_id": tf.constant(["a", "nobody"]),
    "history": tf.constant([["m1", "m3"], ["", ""]]),
    "history_time": tf.constant([[5, 9], [-1, -1]], tf.int64),
    "history_rating": tf.constant([[5.0, 1.0], [float("nan")] * 2]),
    "time": tf.constant([1_000_000_000, -1], tf.int64),
    "search_text": tf.constant(["moon", ""]),
    "gender": tf.constant(["F", ""]),
}
SIZES = {"hidden": (16, 8), "dim": 4}


def lengths(vectors):
    return np.linalg.norm(vectors, axis=1)


RATED = MeanConfig(ratings=True)


def towers(**options):
    """An item and a query tower with all features, and their raw inputs."""
    items = item_tower(ITEMS, ItemConfig(tuple(RAW_ITEMS), **SIZES | options))
    features = ("user_id", "history", "time", "search_text", "gender")
    queries = query_tower(QUERIES, QueryConfig(features, history=RATED, **SIZES | options))
    return (items, RAW_ITEMS), (queries, RAW_QUERIES)
