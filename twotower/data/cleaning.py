"""Cleaning: turns a column as it was read into one of the forms of `columns.py`, or refuses it.

The form follows from the name of the column, or else from its values.
"""

import itertools
import numbers
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from twotower.data.columns import EXACT, IDS, NUMBERS, TEXTS, TIMES, form_of, known, refuse
from twotower.data.list_columns import LISTS, clean_lists
from twotower.data.times import LATEST, seconds_of, written_as_dates

# The largest number that the models' float32 holds.
LARGEST = float(np.finfo(np.float32).max)
# Names that `pandas.api.types.infer_dtype` has for numbers and for times.
_NUMBER_KINDS = ("integer", "floating", "mixed-integer-float", "decimal")
_TIME_KINDS = ("datetime64", "datetime", "date")
# How `_text` writes what was no text.
_TEXT_OF = {
    "boolean": "true|false",
    **dict.fromkeys(_NUMBER_KINDS, r"-?(0|[1-9]\d*)"),
    **dict.fromkeys(_TIME_KINDS, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
}


def clean(frame: pd.DataFrame, table: str, forms: dict[str, str] | None = None) -> pd.DataFrame:
    """A copy of the table with every column in its form; `frame` is not changed.

    Ids are copied as they are: the Dataset checks them, since it compares them between tables.

    Args:
        frame: The table as it came.
        table: `interactions`, `items` or `users`.
        forms: `form_of` each column of a table that these rows continue. Such a form is used
            whatever the values are.

    Raises:
        ColumnError: A value that its column cannot hold, such as text instead of a number, a
            number that is infinite as float32, a year that is not whole, a time that is not in
            seconds, or vectors of different lengths.
        ValueError: Two columns of one name, or a name that is no text.
    """
    for column in frame.columns:
        if not isinstance(column, str):
            raise ValueError(
                f"{table} have a column named {column!r}, which is no text. Rename or drop it."
            )
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"{table} have two columns named {twice!r}. Rename or drop one of them.")
    cleaned = frame.copy(deep=False)
    for column in frame.columns:
        values = _unpacked(frame[column].reset_index(drop=True))
        cleaned[column] = (
            values.array if column in IDS else _clean(values, table, (forms or {}).get(column))
        )
    return cleaned


def as_stored(values: pd.Series, wanted: Any) -> Any:
    """A value as a cleaned column would hold it, to compare with: among texts, True is "true".

    Raises:
        ValueError: The value is missing, or the column has no value of its type.
    """
    name, form = values.name, form_of(values)
    if pd.api.types.is_scalar(wanted) and pd.isna(wanted):
        raise ValueError(f"{name} is compared with {wanted}, which no condition matches. Drop it.")
    column = pd.Series([wanted], dtype=object, name=name)
    kind = pd.api.types.infer_dtype(column)
    if form == "number":
        if kind in _TIME_KINDS:
            return seconds_of(column)[0]
        if kind in _NUMBER_KINDS:
            return wanted if kind == "integer" else float(wanted)
        raise ValueError(
            f"{name} holds numbers; got {wanted!r}, which is none. Give a number; a time is "
            "seconds since 1970 or a pd.Timestamp."
        )
    if isinstance(wanted, str):
        return wanted
    texts = values[known(values)]
    texts = dict.fromkeys(texts if form == "text" else itertools.chain.from_iterable(texts))
    other = next((text for text in texts if not re.fullmatch(_TEXT_OF.get(kind, ""), text)), None)
    if other is not None:
        raise ValueError(f"{name} holds text such as {other!r}; got {wanted!r}. Give text.")
    return _text(column, kind, "items")[0]


def _unpacked(values: pd.Series) -> pd.Series:
    """The column with plain values, where its type is of categories, sparse or of Arrow."""
    kind = values.dtype
    if isinstance(kind, pd.CategoricalDtype) and values.name not in IDS:
        return values.astype(object)
    if isinstance(kind, pd.SparseDtype):
        return values.sparse.to_dense()
    if isinstance(kind, pd.ArrowDtype) and not _is_plain(kind.pyarrow_dtype):
        return pd.Series(pa.array(values.array).to_pylist(), dtype=object, name=values.name)
    return values


def _is_plain(kind: pa.DataType) -> bool:
    """Whether pandas can infer what a column of this Arrow type holds."""
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_date)
    plain += (types.is_timestamp, types.is_string, types.is_large_string)
    return any(is_kind(kind) for is_kind in plain)


def _clean(values: pd.Series, table: str, form: str | None):
    """One column in its form: by its name, by `form` where that is given, or by its values."""
    column = values.name
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if column in TIMES.get(table, ()):
        return _time(values, kind, table)
    if column == "year" and table == "items":
        return _year(values, kind)
    if column in NUMBERS.get(table, ()):
        return _number(values, kind, table).astype(np.float32)
    if table == "users" or column in TEXTS.get(table, ()) or form == "text":
        return _text(values, kind, table)
    is_tags = form == "tags" or (table, column) == ("items", "genres")
    first = next(iter(values[values.notna()]), "") if form is None else None
    if is_tags or form == "vector" or isinstance(first, LISTS):
        return clean_lists(values, table, is_tags)
    if kind in _TIME_KINDS:
        return _whole(seconds_of(values))
    if kind in _NUMBER_KINDS or form == "number":
        return _other_number(values, kind, table, form)
    return _text(values, kind, table)


def _text(values: pd.Series, kind: str, table: str):
    """Strings, "" where missing. Numbers, truth values and times are written as text."""
    present = values.notna()
    if kind == "string":
        return values.array if present.all() else values.where(present, "").array
    texts = np.full(len(values), "", object)
    if kind == "boolean":
        texts[present] = np.where(values[present].astype(bool), "true", "false")
    elif kind in _TIME_KINDS:
        times = pd.to_datetime(seconds_of(values)[present], unit="s")
        texts[present] = times.strftime("%Y-%m-%dT%H:%M:%SZ")
    elif kind in _NUMBER_KINDS:
        found = values[present].to_numpy()
        # pandas stores whole numbers as floats if one is missing: 25.0 means 25.
        is_whole = _are_whole(found)
        texts[present] = [str(int(number) if is_whole else number) for number in found]
    else:
        wrong = present & ~values.map(lambda value: isinstance(value, str)).astype(bool)
        is_bytes = values.map(lambda value: isinstance(value, bytes)).any()
        hint = " (.str.decode('utf-8') makes text of bytes)" if is_bytes else ""
        refuse(table, values, wrong, "is {}, not text" + hint)
        texts[present] = values[present]
    return texts


def _number(
    values: pd.Series, kind: str, table: str, not_a_number: str = "is {}, not a number"
) -> np.ndarray:
    """float64, NaN where missing. Every value is finite as float32, the type of the models."""
    present = values.notna()
    if kind not in (*_NUMBER_KINDS, "empty"):
        is_number = values.map(
            lambda value: isinstance(value, numbers.Number) and not isinstance(value, bool)
        )
        wrong = present & ~is_number.astype(bool)
        # All may be numbers, but of kinds that no column takes: complex, or Decimals among floats.
        refuse(table, values, wrong if wrong.any() else present, not_a_number)
    problem = "is {}; numbers must be finite, and within a float32"
    if values.dtype == object:  # Python's integers may be too large even for float64
        too_large = [abs(number) > LARGEST for number in values.where(present, 0)]
        refuse(table, values, too_large, problem)
    found = values.to_numpy(np.float64, na_value=np.nan)
    refuse(table, values, np.abs(found) > LARGEST, problem)
    return found


def _other_number(values: pd.Series, kind: str, table: str, form: str | None):
    """Numbers of a column that may hold anything: int64, float64 or, past 2**53, text."""
    found = _number(values, kind, table)
    present = values.notna().to_numpy(bool)
    given = values[present].to_numpy()
    if kind not in ("integer", "decimal") or not _are_whole(given):
        return found
    # Compared before a float rounds them: 2**53 + 1 would be 2**53.
    is_long = np.zeros(len(values), bool)
    is_long[present] = (given > EXACT) | (given < -EXACT)
    if form == "number":
        refuse(table, values, is_long, "is {}, past 2**53; a column of numbers rounds it")
    # Long ones are ids of some other system.
    return _text(values, kind, table) if is_long.any() else _whole(found)


def _are_whole(found: np.ndarray) -> bool:
    """Whether all of these numbers are whole; none is missing."""
    if found.dtype != object:
        return bool((found % 1 == 0).all())
    # A Decimal of 29 digits has no remainder, and an infinite one no int.
    return all(abs(number) != np.inf and int(number) == number for number in found)


def _whole(found: np.ndarray) -> np.ndarray:
    """Whole numbers as int64 if none is missing, else unchanged: float64 with NaN."""
    return found if np.isnan(found).any() else found.astype(np.int64)


def _year(values: pd.Series, kind: str) -> np.ndarray:
    """Whole years. 0 counts as missing, since many files write it for an unknown year."""
    found = _number(values, kind, "items")
    wrong = (found % 1 != 0) & ~np.isnan(found) | (np.abs(found) > 9999)
    refuse("items", values, wrong, "is {}, not a year such as 1999")
    return _whole(np.where(found == 0, np.nan, found))


def _time(values: pd.Series, kind: str, table: str) -> np.ndarray:
    """Whole seconds since 1970. A `timestamp` may not be missing or before 1970; `released` may."""
    not_a_time = "is {}, not a number of seconds or a datetime; pd.to_datetime makes datetimes"
    found = seconds_of(values) if kind in _TIME_KINDS else _number(values, kind, table, not_a_time)
    present = ~np.isnan(found)
    refuse(table, values, present & (found % 1 != 0), "is {}, not whole seconds since 1970")
    problem = (
        "is {}; times are seconds, up to the year 5138: are these milliseconds? Divide by 1000"
    )
    refuse(table, values, found > LATEST, problem)
    problem = (
        "is {}, which reads as a date and not as seconds: write 2011-08-20 for 20110820 or 110820, "
        "2011-08-01 for 201108, 2011-01-01 for 2011, and 2011-08-20T10:00 for 2011082010"
    )
    refuse(table, values, written_as_dates(found), problem)
    if values.name == "released":
        refuse(table, values, found < -LATEST, "is {}; times are seconds since 1970")
        return _whole(found)
    refuse(table, values, ~present, "is missing; every row needs one")
    refuse(table, values, found < 0, "is {}, before 1970")
    return found.astype(np.int64)
