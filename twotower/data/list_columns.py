"""Columns of lists: tags, which are tuples of text, and vectors of one length."""

import decimal
import numbers

import numpy as np
import pandas as pd

from twotower.data.columns import refuse

# Types that count as a list.
LISTS = (tuple, list, set, frozenset, np.ndarray)


def clean_lists(
    values: pd.Series, table: str, is_tags: bool
) -> pd.api.extensions.ExtensionArray | np.ndarray:
    """Lists of text as tuples without their missing entries, lists of numbers as vectors.

    Args:
        values: The column, with lists and missing values.
        table: Name of the table, for errors.
        is_tags: Whether it holds tags. Their numbers become text.

    Raises:
        ColumnError: A row that is not a list of one dimension, an entry of another type, or vectors
            of different lengths.
    """
    present = values.notna()
    is_list = values.map(lambda row: isinstance(row, LISTS) and getattr(row, "ndim", 1) == 1)
    refuse(table, values, present & ~is_list.astype(bool), "is {}, not a list of one dimension")
    rows = [row if there else () for row, there in zip(values, present, strict=True)]
    if not is_tags and any(map(_holds_numbers, rows)):
        column = list(_vectors(values, rows, table))
    else:
        rows = [sorted(row, key=str) if isinstance(row, set | frozenset) else row for row in rows]
        rows = [[tag for tag in row if not _is_gap(tag) and tag != ""] for row in rows]
        wrong = [not all(isinstance(tag, str | numbers.Real) for tag in row) for row in rows]
        refuse(table, values, wrong, "is {}, not a list of text")
        column = [tuple(map(_tag, row)) for row in rows]
    return pd.Series(column, dtype=object).array


def _tag(tag) -> str:
    """A tag as text; 7.0 is "7"."""
    return str(tag) if isinstance(tag, str) else str(int(tag) if tag % 1 == 0 else tag)


def _is_gap(entry) -> bool:
    """Whether an entry of a list is missing."""
    return entry is None or entry is pd.NA or (isinstance(entry, float) and entry != entry)


def _is_number(entry) -> bool:
    is_real = isinstance(entry, numbers.Real | decimal.Decimal | np.bool_)
    return is_real and not isinstance(entry, np.timedelta64)  # a Real to NumPy


def _holds_numbers(row) -> bool:
    """Whether a list has an entry that is neither text nor missing."""
    if isinstance(row, np.ndarray) and row.dtype.kind in "iuf":
        return len(row) > 0
    return any(not isinstance(entry, str | bytes) and not _is_gap(entry) for entry in row)


def _vectors(values: pd.Series, rows: list, table: str) -> np.ndarray:
    """`[num_rows, length]` float32; NaN for rows without a vector and for missing entries."""
    lengths = np.array([len(row) for row in rows])
    length = lengths[lengths > 0][0]
    wrong = (lengths > 0) & (lengths != length)
    refuse(table, values, wrong, f"is {{}}, not a vector of length {length} as the first one")
    vectors = np.full((len(rows), length), np.nan, np.float32)
    for row in np.flatnonzero(lengths):
        entries = rows[row]
        # NumPy would make numbers of dates and texts, and lose masks and imaginary parts.
        if type(entries) is not np.ndarray or entries.dtype.kind not in "biuf":
            entries = [np.nan if _is_gap(entry) else entry for entry in entries]
            if not all(map(_is_number, entries)):
                problem = "is {}, not a list of numbers; write dates as seconds, and names as text"
                refuse(table, values, np.arange(len(rows)) == row, problem)
        with np.errstate(over="ignore"):
            vectors[row] = entries
    refuse(table, values, np.isinf(vectors).any(1), "is {}; numbers must be finite as float32")
    return vectors
