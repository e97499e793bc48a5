"""The kinds of columns that a Dataset has, how each stores its values, and checks of ids.

    text      strings, "" where missing
    number    float32 for `rating` and `value`; else int64 for whole numbers of which none is
              missing, and float64 with NaN for all others (beyond 2**53 whole numbers are text)
    time      whole seconds since 1970: int64, or float64 if a value is missing (NaN)
    tags      tuples of strings, () where missing
    vector    float32, all of one length, NaN where missing

The names in `TEXTS`, `NUMBERS` and `TIMES` are of that kind, `genres` are tags, and every column of
`users` is text. The kind of any other column follows from its values.
"""

import re

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

IDS = ("user_id", "item_id")
TEXTS = {
    "interactions": ("event", "search_text", "device", "country"),
    "items": ("title", "description", "maker"),
}
NUMBERS = {"interactions": ("rating", "value", "weight"), "items": ("year",)}
TIMES = {"interactions": ("timestamp",), "items": ("released",)}
# float64 holds every whole number up to this one.
EXACT = 2**53
# How a spreadsheet shows a long number, whose last digits are lost when it is saved.
SHORTENED = r"^\d(?:[.,]\d{1,5})?E\+\d\d$"
# Ids that stand for others, by pattern, and what is wrong with them.
SPOILT_IDS = {
    "[\x00\u200b\u2060\ufeff]": "is {}, with a character that nobody sees, such as the byte order "
    "mark between two files that were joined; drop it",
    r"^\s|\s$": "is {}, with a blank at its beginning or end, which makes it another id; drop the "
    "blank, in all tables (of a text file with ', ' between fields: sep=', ')",
    r"^(?:nan|NaN|<NA>|NaT|None|null|NULL)$": "is {}, as programs write a missing value; drop "
    "such rows, or give them an id",
    SHORTENED: "is {}, a number that a spreadsheet has shortened, so that others look alike; save "
    "the column as text",
    r"""(?s)^b(?:'.*'|".*")$""": "is {}, as Python writes bytes, so it differs from the same id as "
    "text; write the text alone, in all rows and tables",
}


class ColumnError(ValueError):
    """A value that its column cannot hold.

    Attributes:
        table: `interactions`, `items` or `users`.
        column: Name of the column.
        row: Row of the table, counted from 0; None where the whole column is wrong.
        problem: The rest of the sentence, such as `is 'new', not a number`.

    >>> print(ColumnError("items", "year", 3, "is 'new', not a number"))
    items, row 3: year is 'new', not a number.
    """

    def __init__(self, table: str, column: str, row: int | None, problem: str) -> None:
        where = table if row is None else f"{table}, row {row}"
        super().__init__(f"{where}: {column} {problem}.")
        self.table, self.column, self.row, self.problem = table, column, row, problem


def refuse(table: str, values: pd.Series, wrong: ArrayLike, problem: str) -> None:
    """Raises a ColumnError for the first row that is `wrong`, if there is one.

    Args:
        table: Name of the table.
        values: The column.
        wrong: `[num_rows]` bool.
        problem: The rest of the sentence; `{}` in it stands for the value.
    """
    wrong = np.asarray(wrong, bool)
    if wrong.any():
        row = int(wrong.argmax())
        value = values.iloc[row]
        shown = repr(value.item() if isinstance(value, np.generic) else value)
        shown = shown if len(shown) < 80 else shown[:77] + "..."
        raise ColumnError(table, str(values.name), row, problem.replace("{}", shown))


def check_ids(table: str, ids: pd.Series) -> None:
    """Raises ColumnError for an id that is no string, empty or there twice."""
    wrong = ~ids.map(lambda value: isinstance(value, str)).to_numpy(bool)
    refuse(table, ids, wrong, "is {}, not a string; use .astype(str), in all tables")
    refuse(table, ids, ids == "", "is empty")
    refuse(
        table,
        ids,
        ids.duplicated(),
        "is {}, which stands in an earlier row, too; keep one row of each",
    )


def refuse_spoilt_ids(table: str, ids: pd.Series) -> None:
    """Raises ColumnError for ids that a program has changed, so that they match no others."""
    texts = np.asarray(ids.unique(), object)
    for pattern, problem in SPOILT_IDS.items():
        if spoilt := [*filter(re.compile(pattern).search, texts)]:
            refuse(table, ids, ids.isin(spoilt), problem)
    with_point = [text for text in texts if text.endswith(".0")]
    if with_point and all(map(re.compile(r"-?(0|[1-9]\d*)(\.0)?").fullmatch, texts)):
        problem = "is {}, a whole number written as a float; write 12 for 12.0, in all tables"
        refuse(table, ids, ids.isin(with_point), problem)


def form_of(values: pd.Series) -> str:
    """The form of a cleaned column: `text`, `number`, `tags` or `vector`."""
    first = values.iloc[0] if len(values) else 0.0
    kinds = {np.ndarray: "vector", tuple: "tags", str: "text"}
    return next((form for kind, form in kinds.items() if isinstance(first, kind)), "number")


def known(values: pd.Series) -> np.ndarray:
    """Which rows of a cleaned column have a value, `[num_rows]` bool."""
    form = form_of(values)
    if form == "vector":
        return ~np.isnan(np.stack(values.to_numpy())).any(1)
    if form == "tags":
        return np.fromiter((len(tags) > 0 for tags in values), bool, len(values))
    if form == "text":
        return (values != "").to_numpy(bool)
    return values.notna().to_numpy(bool)
