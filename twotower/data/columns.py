"""The kinds of columns that a Dataset has: how each stores its values, and which it refuses.

    text      strings, "" where missing
    number    float32 for `rating` and `value`; else int64 for whole numbers of which none is
              missing, and float64 with NaN for all others (beyond 2**53 whole numbers are text)
    time      whole seconds since 1970: int64, or float64 if a value is missing (NaN)
    tags      tuples of strings, () where missing
    vector    float32, all of one length, NaN where missing

The names in `TEXTS`, `NUMBERS` and `TIMES` are of that kind, `genres` are tags, and every column of
`users` is text. The kind of any other column follows from its values.
"""

import decimal
import itertools
import numbers
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike

from twotower.data.times import LATEST, seconds_of, written_as_dates

IDS = ("user_id", "item_id")
TEXTS = {
    "interactions": ("event", "search_text", "device", "country"),
    "items": ("title", "description", "maker"),
}
NUMBERS = {"interactions": ("rating", "value", "weight"), "items": ("year",)}
TIMES = {"interactions": ("timestamp",), "items": ("released",)}
# float64 holds every whole number up to this one.
EXACT = 2**53
LARGEST = float(np.finfo(np.float32).max)
# How a spreadsheet shows a long number, whose last digits are lost when it is saved.
SHORTENED = r"^\d(?:[.,]\d{1,5})?E\+\d\d$"
# Ids that stand for others, by pattern, and what is wrong with them.
SPOILT_IDS = {
    r"^\s|\s$": "is {}, with a blank at its beginning or end, which makes it another id; drop the "
    "blank, in all tables (of a text file with ', ' between fields: sep=', ')",
    r"^(?:nan|NaN|<NA>|NaT|None|null|NULL)$": "is {}, as programs write a missing value; drop "
    "such rows, or give them an id",
    SHORTENED: "is {}, a number that a spreadsheet has shortened, so that others look alike; save "
    "the column as text",
    r"""(?s)^b(?:'.*'|".*")$""": "is {}, as Python writes bytes, which makes it another id; write "
    "the text alone, in all rows and tables",
}
# Names that `pandas.api.types.infer_dtype` has for numbers and for times.
_NUMBER_KINDS = ("integer", "floating", "mixed-integer-float", "decimal")
_TIME_KINDS = ("datetime64", "datetime", "date")
# How `_text` writes what was no text.
_TEXT_OF = {
    "boolean": "true|false",
    **dict.fromkeys(_NUMBER_KINDS, r"-?(0|[1-9]\d*)"),
    **dict.fromkeys(_TIME_KINDS, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
}
_LISTS = (tuple, list, set, frozenset, np.ndarray)


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


def clean(frame: pd.DataFrame, table: str, forms: dict[str, str] | None = None) -> pd.DataFrame:
    """A copy of the table with every column in its form; `frame` is not changed.

    Ids are copied as they are: the Dataset checks them, since it compares them between tables.

    Args:
        frame: The table as it came.
        table: `interactions`, `items` or `users`.
        forms: `form_of` each column of a table that these rows continue. Where a column has one, it
            does not follow from the values.

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


def check_ids(table: str, ids: pd.Series) -> None:
    """Raises ColumnError for an id that is no string, empty or there twice."""
    wrong = ~ids.map(lambda value: isinstance(value, str)).to_numpy(bool)
    refuse(table, ids, wrong, "is {}, not a string; use .astype(str), in all tables")
    refuse(table, ids, ids == "", "is empty")
    refuse(table, ids, ids.duplicated(), "is {}, which stands in an earlier row, too")


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
    """The column with its values as such, where it holds numbers of entries of a dictionary."""
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
    if is_tags or form == "vector" or isinstance(first, _LISTS):
        return _lists(values, table, is_tags)
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


def _number(values: pd.Series, kind: str, table: str) -> np.ndarray:
    """float64, NaN where missing. Every value is finite as float32, the type of the models."""
    present = values.notna()
    if kind not in (*_NUMBER_KINDS, "empty"):
        is_number = values.map(
            lambda value: isinstance(value, numbers.Number) and not isinstance(value, bool)
        )
        refuse(table, values, present & ~is_number.astype(bool), "is {}, not a number")
        refuse(table, values, present, "is {}, not a number")
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
    found = seconds_of(values) if kind in _TIME_KINDS else _number(values, kind, table)
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


def _lists(values: pd.Series, table: str, is_tags: bool):
    """Lists of text as tuples without their missing entries, lists of numbers as vectors."""
    present = values.notna()
    is_list = values.map(lambda row: isinstance(row, _LISTS) and getattr(row, "ndim", 1) == 1)
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
