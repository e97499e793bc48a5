"""Three tables as plain Python rows, and the dataset that they are in every form."""

import numpy as np
import pandas as pd
from small_tables import NAN

from twotower.data import tables
from twotower.data.dataset import Dataset

TIMES = [1704067200, 1704067209, 1704070800]
# The rows as plain Python, None where nothing is known.
ROWS = {
    "interactions": {
        "user_id": [7, 7, 12],
        "item_id": ["b", "a", "a"],
        "timestamp": TIMES,
        "rating": [4.1, None, 2.5],
        "event": ["watch", None, "skip"],
        "search_text": ["NA, é", None, 'a "b"\nc'],
        "session": ["s1", None, "x"],
    },
    "items": {
        "item_id": ["a", "b", "c"],
        "title": ["Café, the", None, "2001"],
        "genres": [["Drama", "Children's"], None, ["War"]],
        "year": [1999, None, -750],
        "released": [-86400, None, 946684800],
        "maker": [12, None, 7],
        "stars": [0.1, None, 3.25],
        "pages": [120, None, 99],
        "is_new": [True, None, False],
        "seen": [1500000000, None, 1500000001],
        "audio": [[0.5, -2.0], None, [1e-3, 3.0]],
        "tags": [["x, y", "z"], None, ["w"]],
        "nothing": [None, None, None],
    },
    "users": {"user_id": [12, 7], "age": [25, None], "zip": ["01234", None]},
}
EXPECTED = Dataset(
    "expected",
    pd.DataFrame(
        {
            "user_id": ["7", "7", "12"],
            "item_id": ["b", "a", "a"],
            "timestamp": np.int64(TIMES),
            "rating": np.float32([4.1, NAN, 2.5]),
            "event": ["watch", "", "skip"],
            "search_text": ["NA, é", "", 'a "b"\nc'],
            "session": ["s1", "", "x"],
        }
    ),
    pd.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["Café, the", "", "2001"],
            "genres": [("Drama", "Children's"), (), ("War",)],
            "year": [1999.0, NAN, -750.0],
            "released": [-86400.0, NAN, 946684800.0],
            "maker": ["12", "", "7"],
            "stars": [0.1, NAN, 3.25],
            "pages": [120, NAN, 99],
            "is_new": ["true", "", "false"],
            "seen": [1500000000.0, NAN, 1500000001.0],
            "audio": list(np.float32([[0.5, -2], [NAN, NAN], [1e-3, 3]])),
            "tags": [("x, y", "z"), (), ("w",)],
        }
    ),
    pd.DataFrame({"user_id": ["12", "7"], "age": ["25", ""], "zip": ["01234", ""]}),
)


def load_all(folder):
    """The three tables, whatever their files are called."""
    paths = {table: next(folder.glob(f"{table}*")) for table in ROWS}
    return tables.read_tables(**paths)
