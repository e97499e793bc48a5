"""Columns of files as pandas holds them: ids, numbers, times, genres and lists written as text."""

import ast
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from twotower.data import schema
from twotower.data.columns import (
    IDS,
    NUMBERS,
    SHORTENED,
    TEXTS,
    TIMES,
    ColumnError,
    refuse,
    refuse_spoilt_ids,
)
from twotower.data.times import LATEST, reads_as_date, seconds_of

# Texts that stand for a missing number or time.
MISSING = ("", "nan", "na", "n/a", "<na>", "nat", "null", "none")
# What a text must look like to be a number, a whole one, or a date.
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$"
WHOLE = r"^-?(0|[1-9]\d*)$"
DATE = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?$"
# No zero in front: 01234 is a code, which would lose its zero as a number.
NO_CODE = r"^[+-]?([^0]|0$|0[.eE])"
DECIMAL_COMMA = r"^[+-]?\d+,\d+$"
# A whole number as pandas writes it where another row of the column has none.
WHOLE_FLOAT = r"^-?(0|[1-9]\d*)\.0$"
MISSING_ID = "is missing; every row needs one, so leave out the rows without it"
# Bytes as Python writes them into a text file.
BYTES = r"""^b('([^'\\]|\\.)*'|"([^"\\]|\\.)*")$"""
# Separators of genres in a text; the first that occurs in the column counts.
SEPARATORS = ("|", ";", ",")
# How lists written as text begin: those of genres, and those of other columns.
GENRE_LIST = r"(?s)[\[{]|\((?:.*,.*)?\)$|[\w.]+\([\[({]|(?:frozen)?set\(\)$"
LIST = r"^\["
NUMPY_SCALAR = re.compile(r"(?:np|numpy)\.\w+\(([^()]*)\)")
# NumPy puts no comma between texts, so that Python would read 'a' 'b' as one text, 'ab'.
NO_COMMA = re.compile(r"""['"]\s+['"]""")


def column_of(
    array: pa.ChunkedArray, name: str, table: str, is_text: bool, unit: str = ""
) -> pd.Series:
    """A file's column as pandas holds it.

    Args:
        array: One of the types of `files.read`.
        name: Our name of it.
        table: `interactions`, `items` or `users`.
        is_text: Whether the file has no types, so that they follow from the texts.
        unit: How times are written, as `schema.Entry` has it; "" for the usual ways.

    Raises:
        ColumnError: A value that is not what the column holds.
    """
    if unit and not (pa.types.is_temporal(array.type)):
        return _in_seconds(array.cast(pa.large_string()), unit, name, table)
    if name in IDS:
        return _ids(array, name, table)
    is_genres = (table, name) == ("items", "genres")
    if is_genres and (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        array = _codes(array)
    if array.type == pa.large_string():
        array = _without_points(array) if is_text else array
        if name in TIMES.get(table, ()):
            return _times(array, name, table)
        if name in NUMBERS.get(table, ()):
            return _pandas(_numbers(array, name, table), name)
        if is_genres:
            return _genres(array, name, table)
        if is_text:
            is_typed = table != "users" and name not in TEXTS.get(table, ())
            return _typed(array, name, table) if is_typed else _pandas(array, name)
    elif table == "users" and pa.types.is_date(array.type):
        array = array.cast(pa.large_string())  # 1980-01-01, as text files have it
    elif is_genres and pa.types.is_large_list(array.type):
        array = array.cast(pa.large_list(pa.large_string()))
    return _pandas(array, name)


def decoded(text: pa.ChunkedArray) -> pa.ChunkedArray | None:
    r"""The texts of a column whose every value is written as Python's bytes; None of any other.

    >>> decoded(pa.chunked_array([["b'Am\\xc3\\xa9lie'"]], pa.large_string())).to_pylist()
    ['Amélie']
    """
    # Some rows first, which tell nearly every other column apart.
    for part in (text.slice(0, 1000), text):
        known = pc.if_else(pc.equal(part, ""), None, part)
        if pc.all(pc.match_substring_regex(known, BYTES)).as_py() is False:
            return None
    if known.null_count == len(known):
        return None
    coded = known.combine_chunks().dictionary_encode()
    try:
        texts = [ast.literal_eval(literal).decode() for literal in coded.dictionary.to_pylist()]
    except (SyntaxError, ValueError):  # such as Latin-1
        return None
    texts = pa.array(texts, pa.large_string())
    return pa.chunked_array(
        [pa.DictionaryArray.from_arrays(coded.indices, texts).dictionary_decode()]
    )


def _pandas(array: pa.ChunkedArray, name: str) -> pd.Series:
    return array.to_pandas(integer_object_nulls=True, date_as_object=False).rename(name)


def _ids(array: pa.ChunkedArray, name: str, table: str) -> pd.Series:
    kind = array.type
    refuse(table, pd.Series(name=name, index=range(len(array))), array.is_null(), MISSING_ID)
    if not (pa.types.is_integer(kind) or kind == pa.large_string() or pa.types.is_null(kind)):
        raise ColumnError(
            table,
            name,
            None,
            f"holds {kind} such as {array[0]}; ids must be strings or whole numbers. (Whole "
            "numbers turn into floats where a row has none)",
        )
    ids = _pandas(array.cast(pa.large_string()), name)
    refuse(table, ids, ids == "", MISSING_ID)
    refuse_spoilt_ids(table, ids)
    return ids


def _without_points(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """`25` for `25.0` in a column of whole numbers with a gap, which pandas writes as floats."""
    known = pc.if_else(pc.equal(text, ""), None, text)
    is_whole = known.null_count and pc.all(pc.match_substring_regex(known, WHOLE_FLOAT)).as_py()
    return pc.utf8_slice_codeunits(known, 0, -2) if is_whole else text


def _codes(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers as text; others as they are."""
    try:
        whole = numbers.cast(pa.int64()) if pa.types.is_floating(numbers.type) else numbers
    except pa.ArrowInvalid:
        return numbers
    return whole.cast(pa.large_string())


def _present(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Trimmed texts, null where they stand for nothing."""
    text = pc.utf8_trim_whitespace(text)
    is_missing = pc.is_in(pc.utf8_lower(text), pa.array(MISSING, pa.large_string()))
    return pc.if_else(is_missing, None, text)


def _numbers(text: pa.ChunkedArray, name: str, table: str) -> pa.ChunkedArray:
    """Numbers written as text, as float64."""
    present = _present(text)
    is_number = pc.match_substring_regex(present, NUMBER).fill_null(True).to_numpy()
    problem = "is {}, not a number (a decimal comma is no point: 4.5)"
    with_comma = pc.match_substring_regex(present, DECIMAL_COMMA).fill_null(False).to_numpy()
    refuse(table, _pandas(text, name), with_comma, problem)
    refuse(table, _pandas(text, name), ~is_number, "is {}, not a number")
    return present.cast(pa.float64())


def _times(
    text: pa.ChunkedArray, name: str, table: str, written: pa.ChunkedArray | None = None
) -> pd.Series:
    """Times written as text, in seconds, NaN where missing; `written` is what errors show."""
    present = _present(text)
    shown = _pandas(text if written is None else written, name)
    _refuse_shortened(present, shown, table)
    is_number = pc.match_substring_regex(present, NUMBER)
    seconds = pc.if_else(is_number, present, None).cast(pa.float64()).to_numpy()
    is_number = is_number.fill_null(True).to_numpy()
    if not is_number.all():
        # Beside dates, 2011 is a year and 20110820 a date, which ISO 8601 may write without dashes.
        is_date = ~is_number | reads_as_date(seconds)
        # pandas takes `now` and `today` for ISO 8601, too; its dates begin with the year.
        has_year = pc.match_substring_regex(present, r"^\d{4}")
        dates = _pandas(pc.if_else(has_year, present, None), name).where(is_date)
        dates = pd.to_datetime(dates, errors="coerce", utc=True, format="ISO8601")
        problem = "is {}, not whole seconds since 1970 or an ISO 8601 date"
        refuse(table, shown, is_date & dates.isna(), problem)
        seconds = np.where(is_date, seconds_of(dates), seconds)
    return pd.Series(seconds, name=name)


def _refuse_shortened(text: pa.ChunkedArray, shown: pd.Series, table: str) -> None:
    """Raises ColumnError for times that a spreadsheet has shortened to some digits."""
    is_short = pc.match_substring_regex(text, SHORTENED).fill_null(False).to_numpy()
    problem = "is {}, which a spreadsheet has shortened: save the column with all of its digits"
    refuse(table, shown, is_short, problem)


def _typed(text: pa.ChunkedArray, name: str, table: str) -> pd.Series:
    """Numbers, truth values, dates or lists, where every value of a text column is one."""
    present = _present(text)

    def every(pattern: str) -> bool:
        return pc.all(pc.match_substring_regex(present, pattern)).as_py()

    if present.null_count == len(present):
        return _pandas(text, name)
    if every(WHOLE):
        is_id = pc.max(pc.utf8_length(present)).as_py() > 18  # no number has as many digits
        return _pandas(text if is_id else present.cast(pa.int64()), name)
    if every(NUMBER) and every(NO_CODE):
        return _pandas(present.cast(pa.float64()), name)
    if every("^(?i:true|false)$"):
        return _pandas(pc.equal(pc.utf8_lower(present), "true"), name)
    if every(DATE):
        dates = pd.to_datetime(_pandas(present, name), errors="coerce", utc=True, format="ISO8601")
        if dates.notna().sum() == len(present) - present.null_count:
            return dates
    if every(f"{WHOLE}|{DECIMAL_COMMA}"):
        with_comma = pc.match_substring_regex(present, DECIMAL_COMMA).fill_null(False).to_numpy()
        problem = "is {}, a number with a decimal comma: write 4.5 for 4,5, or a list as [4, 5]"
        refuse(table, _pandas(text, name), with_comma, problem)
    if every(LIST) and _list_of(present.drop_null()[0].as_py()) is not None:
        return _lists(_pandas(present, name), table)
    return _pandas(text, name)


def _genres(text: pa.ChunkedArray, name: str, table: str) -> pd.Series:
    """Lists of the genres that each text names."""
    texts = _pandas(_present(text), name)
    refuse(table, texts, texts.str.match(r"\[\s*\{").fillna(False), "is {}; give names alone")
    is_list = texts.str.match(GENRE_LIST).fillna(False).astype(bool)
    plain = texts[texts.notna() & ~is_list]
    genres = _lists(texts.where(is_list), table)
    separators = (mark for mark in SEPARATORS if plain.str.contains(mark, regex=False).any())
    separator = next(separators, "|")
    genres[plain.index] = [list(map(str.strip, value.split(separator))) for value in plain]
    return genres


def _in_seconds(text: pa.ChunkedArray, unit: str, name: str, table: str) -> pd.Series:
    """Times in a unit, or dates in another form than ISO 8601, in seconds, NaN where missing."""
    present, shown = _present(text), _pandas(text, name)
    if unit in schema.UNITS:
        _refuse_shortened(present, shown, table)
        is_number = pc.match_substring_regex(present, NUMBER).fill_null(True).to_numpy()
        refuse(table, shown, ~is_number, f"is {{}}, not a number of {unit}")
        seconds = present.cast(pa.float64()).to_numpy() // schema.UNITS[unit]
        # Here, since the Dataset knows the seconds alone and not what the file says.
        if name == "timestamp":
            refuse(table, shown, seconds < 0, f"is {{}} {unit}, before 1970")
        late = f"is {{}} {unit}, past the year 5138: is it written in a finer unit?"
        refuse(table, shown, seconds > LATEST, late)
        return pd.Series(seconds, name=name)
    if unit in schema.DATE_ORDERS:
        # As ISO 8601 has it, so that no part is taken for another.
        order = r"\3-\2-\1" if unit == "dayfirst" else r"\3-\1-\2"
        dates = pc.replace_substring_regex(present, r"^(\d)([./-])", r"0\1\2")
        dates = pc.replace_substring_regex(dates, r"^(\d\d[./-])(\d)([./-])", r"\10\2\3")
        dates = pc.replace_substring_regex(dates, r"^(\d\d)[./-](\d\d)[./-](\d{4})", order)
        return _times(dates, name, table, written=text)
    try:
        dates = pd.to_datetime(_pandas(present, name), errors="coerce", utc=True, format=unit)
    except ValueError as error:
        raise ColumnError(table, name, None, f"has the format {unit!r}: {error}") from error
    wrong = dates.isna() & present.is_valid().to_numpy()
    refuse(table, shown, wrong, f"is {{}}, not a time as {unit}")
    return pd.Series(seconds_of(dates), name=name)


def _lists(texts: pd.Series, table: str) -> pd.Series:
    """Each text as the list that it is, None where it is missing; see `_list_of`."""
    lists = [_list_of(text) if isinstance(text, str) else None for text in texts]
    lists = pd.Series(lists, texts.index, dtype=object, name=texts.name)
    problem = (
        "is {}, which begins as a list and is not one to its end; write lists as JSON, such as "
        '["a", "b"] or [0.5, 1.0]'
    )
    refuse(table, texts, texts.notna() & lists.isna(), problem)
    return lists


def _list_of(text: str) -> list | None:
    """The entries of a list as JSON, Python or, for numbers, NumPy write it; None for another
    text."""
    text = NUMPY_SCALAR.sub(r"\1", text)
    for parse in (json.loads, _literal, _numbers_of):
        try:
            entries = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(entries, list | tuple | set):
            return list(entries)
    return None


def _literal(text: str):
    if NO_COMMA.search(text):
        raise ValueError(text)
    return ast.literal_eval(text)


def _numbers_of(text: str) -> list[float]:
    """Numbers as NumPy writes them, with blanks between them."""
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError(text)
    return [float(number) for number in text[1:-1].split("," if "," in text else None)]
