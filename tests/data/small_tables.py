"""Two plays, and films beside them: tables small enough to write in a line."""

import csv

import pyarrow as pa
import pyarrow.parquet as pq

from twotower.data import tables

NAN = float("nan")
# 2024-01-01T00:00:00Z; by hand: 19,723 days of 86,400 s after 1970-01-01.
NEW_YEAR = 19_723 * 86_400


def plays(**columns):
    """An Arrow table of two plays, with further columns or others in place of its own."""
    base = {"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [5, 6]}
    return pa.table({**base, **columns})


def write(folder, **texts):
    """Files by name, with `__` for the dot."""
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text, "utf-8")


# The first line of plays as text.
HEAD = b"user_id,item_id,timestamp,device\n"


def films(folder, column, texts):
    """A column of two films as it is read from a text file."""
    with open(folder / "films.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["item_id", column], *zip("ab", texts, strict=True)])
    pq.write_table(plays(), folder / "plays.parquet")
    return tables.read_tables(folder / "plays.parquet", folder / "films.csv").items[column]
