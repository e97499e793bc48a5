"""Tables: your own Parquet, CSV or TSV files -> Dataset, and a Dataset -> Parquet."""

import ast
import json
import os
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from twotower.data import files
from twotower.data.columns import (
    IDS,
    NUMBERS,
    TEXTS,
    TIMES,
    ColumnError,
    reads_as_date,
    refuse,
    seconds_of,
)
from twotower.data.dataset import REQUIRED, Dataset
from twotower.storage.paths import local

# Texts that stand for a missing number or time.
MISSING = ("", "nan", "na", "n/a", "<na>", "nat", "null", "none")
# What a text must look like to be a number, a whole one, or a date.
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$"
WHOLE = r"^-?(0|[1-9]\d*)$"
DATE = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?$"
# No zero in front: 01234 is a code, which would lose its zero as a number.
NO_CODE = r"^[+-]?([^0]|0$|0[.eE])"
# A whole number as pandas writes it where another row of the column has none.
WHOLE_FLOAT = r"^-?(0|[1-9]\d*)\.0$"
MISSING_ID = "is missing; every row needs one"
# Separators of genres in a text; the first that occurs in the column counts.
SEPARATORS = ("|", ";", ",")

# Entries of a list written as text: quoted, a number (007 is a code, and none), or missing.
_QUOTED = r"[bu]?'(?:[^'\\]|\\.)*'|[bu]?\"(?:[^\"\\]|\\.)*\""
_DIGITS = r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?i:inf(?:inity)?)"
_PLAIN = rf"{_DIGITS}|(?i:none|null|nan|nat|<na>)"
_ENTRY = rf"(?:np|numpy)\.\w+\((?:{_QUOTED}|{_PLAIN})\)|{_QUOTED}|{_PLAIN}"
# A name without quotes: neither several entries nor what NumPy writes where it cuts a list short.
_WORDS = (
    rf"(?!\s|(?:(?:{_ENTRY})(?:\s+(?:{_ENTRY}))+|\.\.\.)\s*(?:,|\Z))"
    r"(?:[^'\"\[\]{}(),;|]|\([^'\"\[\]{}(),]*\)|(?<=\w)'(?=\w))+"
)
SPACED = re.compile(rf"(?s)\s*({_ENTRY})(?:\s+|\Z)")
COMMAS = re.compile(rf"(?s)\s*({_ENTRY})\s*(?:,|\Z)")
COMMAS_AND_WORDS = re.compile(rf"(?s)\s*({_ENTRY}|{_WORDS})\s*(?:,|\Z)")
NUMPY_SCALAR = re.compile(r"(?:np|numpy)\.\w+\(([^()]*)\)")
VECTOR = re.compile(r"(?as)(?!.*(?:^|[\s,])[+-]?0\d)[-+.,\deEnaif\s]+")
# What Python and NumPy put around lists.
_NAMES = r"(?:np\.|numpy\.)?(?:array|list|tuple|set|frozenset|Index)"
CALL = re.compile(rf"(?s){_NAMES}\(\s*([\[({{].*[\])}}])?\s*(?:,\s*\w+=[^\[{{]*)?\)")
BRACKETS = {"[": "]", "(": ")", "{": "}"}
# How genres begin that are a list; how the lists of other columns begin and end.
GENRE_LIST = rf"(?s)[\[{{]|\(\s*(?:|['\"].*|(?:{_PLAIN}),.*)\)$|{_NAMES}\(\)$|[\w.]+\([\[({{]"
LIST = (
    r"(?s)^(?:(?:np\.|numpy\.)?array\()?\[[\s\[]*"
    rf"(?:\]|[bu]?['\"]|(?:(?:np|numpy)\.\w+\(|(?:{_PLAIN}|0\d+)(?:[\s,;\]]|$)))"
    rf"|^\((?:{_PLAIN}),(?:\s.*)?\)$|^\{{(?:{_PLAIN}),\S.*\}}$"
)
LIST_END = r"(?s)^[^\]]*$|\]$|^[^\[].*[)}]$"
CUT_SHORT = r"(?:^|[\s,\[])\.\.\.(?:[\s,\]]|$)"


def load(
    interactions: str | os.PathLike,
    items: str | os.PathLike | None = None,
    users: str | os.PathLike | None = None,
    name: str | None = None,
) -> Dataset:
    """A Dataset from one to three tables.

    A table is a Parquet, CSV (`,`) or TSV (tabs, `.tsv`) file, compressed or not, or a folder of
    such files, as Spark writes one. Text files are UTF-8 with a line of names; `\\N` is missing.

    - Ids become strings: 7 and "7" are the same id, "07" (in CSV, too) is another.
    - Times (`timestamp`, `released`) are whole seconds since 1970, dates, or ISO 8601 texts; they
      are UTC where they name no zone.
    - `genres` is a list of strings, or a text with `|`, `;` or `,` between them (the first of these
      that the column has), or a list written as text by Python, NumPy, Postgres or as JSON. A text
      that begins as a list and is not one to its end is refused. A list of numbers, such as an
      embedding, becomes a float32 vector; all rows must be of one length.
    - Missing strings become "", missing numbers, years and release times NaN, a missing list of
      strings is empty, a missing vector NaN. A missing id or timestamp is refused.
    - Further columns stay: those of users as strings, others as they are. In text files, what is
      known of users and the texts among `INTERACTION_COLUMNS`, titles, descriptions and makers stay
      as they are written (25.0 means 25 in a column of whole numbers with a gap). Other columns
      become numbers, truth values, times or lists where every value is one; a column with a number
      such as 01234 stays text.

    Args:
        interactions: A table with `user_id`, `item_id`, `timestamp` and the optional columns of
            `INTERACTION_COLUMNS`, or a directory that `save` wrote (then it is the only one).
        items: A table with `item_id`; without one, items are known by their ids alone.
        users: A table with `user_id`; without one, users are known by their ids alone.
        name: Name of the dataset; the first file's by default.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read, a missing column, a value that its column cannot
            hold, or an id without its row in `items` or `users`. The message names the file, the
            line (of Parquet the row, counted from 0) and the column.
    """
    paths = {"interactions": interactions, "items": items, "users": users}
    paths = {table: local(path) for table, path in paths.items() if path is not None}
    folder = paths["interactions"]
    name = name or folder.stem
    if (folder / "interactions.parquet").exists():
        if len(paths) > 1:
            raise ValueError(f"{folder} is a dataset, which brings its own items and users.")
        paths = {table: folder / f"{table}.parquet" for table in REQUIRED}
    sources = {table: files.read(path) for table, path in paths.items()}
    try:
        frames = {table: _frame(source, table) for table, source in sources.items()}
        for table, column in (("items", "item_id"), ("users", "user_id")):
            if table not in frames:
                frames[table] = pd.DataFrame({column: frames["interactions"][column].unique()})
        return Dataset(name, **frames)
    except ColumnError as error:
        source = sources.get(error.table, sources["interactions"])
        raise ValueError(f"{source.where(error.row)}: {error.column} {error.problem}.") from error


def save(dataset: Dataset, directory: str | os.PathLike) -> None:
    """Writes `interactions.parquet`, `items.parquet` and `users.parquet`, for `load(directory)`.

    What is loaded again has the same fingerprint.
    """
    folder = local(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for table in REQUIRED:
        frame = getattr(dataset, table)
        pyarrow.parquet.write_table(
            pa.Table.from_pandas(frame, preserve_index=False), folder / f"{table}.parquet"
        )


def _frame(source: files.Source, table: str) -> pd.DataFrame:
    """The columns of a file as pandas holds them; the Dataset gives them their form."""
    names = source.table.column_names
    missing = [column for column in REQUIRED[table] if column not in names]
    if missing:
        raise ValueError(
            f"{source.where(None)} lacks {missing}; {table} need {list(REQUIRED[table])}, and this "
            f"file has {names}. Rename its columns."
        )
    return pd.DataFrame(
        {name: _column(source.table[name], name, table, source.is_text) for name in names}
    )


def _column(array: pa.ChunkedArray, name: str, table: str, is_text: bool) -> pd.Series:
    """A column as pandas holds it; `is_text` where its file has no types."""
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
    refuse(table, _pandas(text, name), ~is_number, "is {}, not a number")
    return present.cast(pa.float64())


def _times(text: pa.ChunkedArray, name: str, table: str) -> pd.Series:
    """Times written as text, in seconds, NaN where missing."""
    present = _present(text)
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
        refuse(table, _pandas(text, name), is_date & dates.isna(), problem)
        seconds = np.where(is_date, seconds_of(dates), seconds)
    return pd.Series(seconds, name=name)


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
    if every(LIST) and every(LIST_END):
        return _lists(_pandas(present, name), table)
    return _pandas(text, name)


def _genres(text: pa.ChunkedArray, name: str, table: str) -> pd.Series:
    """Lists of the genres that each text names."""
    texts = _pandas(_present(text), name)
    refuse(table, texts, texts.str.match(r"\[\s*\{").fillna(False), "is {}; give names alone")
    is_list = texts.str.match(GENRE_LIST).fillna(False).astype(bool)
    plain = texts[texts.notna() & ~is_list]
    genres = _lists(texts.where(is_list), table, names=True)
    separators = (mark for mark in SEPARATORS if plain.str.contains(mark, regex=False).any())
    separator = next(separators, "|")
    genres[plain.index] = [list(map(str.strip, value.split(separator))) for value in plain]
    return genres


def _lists(texts: pd.Series, table: str, names: bool = False) -> pd.Series:
    """Each text as the list that it is, None where it is missing; see `_list_of`."""
    lists = [_list_of(text, names) if isinstance(text, str) else None for text in texts]
    lists = pd.Series(lists, texts.index, dtype=object, name=texts.name)
    unread = texts.notna() & lists.isna()
    is_cut = unread & texts.str.contains(CUT_SHORT).fillna(False)
    refuse(table, texts, is_cut, "is {}, a list that NumPy cut short; write all of it")
    problem = (
        "is {}, which begins as a list and is not one to its end; write lists as JSON, such as "
        '["a", "b"] or [0.5, 1.0]'
    )
    refuse(table, texts, unread, problem)
    return lists


def _list_of(text: str, names: bool) -> list | None:
    """The entries of a list that Python, NumPy, JSON or Postgres wrote as text, not evaluated.

    Args:
        text: Such as `['a', "b"]`, `[1. 2.]`, `[np.float64(1.0)]` or `{"a b",c}`.
        names: Whether an entry may be a name without quotes.

    Returns:
        Texts, numbers, and None where an entry is missing; None where any part of the text is none.
    """
    if call := CALL.fullmatch(text):
        text = call[1] or "[]"
    try:
        entries = json.loads(text)
        if isinstance(entries, list) and not any(isinstance(entry, bool) for entry in entries):
            return entries
    except (ValueError, RecursionError):
        pass
    inside = text[1:-1].strip()
    if BRACKETS.get(text[0]) != text[-1]:
        return None
    numbers = NUMPY_SCALAR.sub(r"\1", inside)
    if not names and VECTOR.fullmatch(numbers):  # the other patterns take ten times as long
        separator = "," if "," in numbers else None
        try:
            return [float(number) for number in numbers.removesuffix(",").split(separator)]
        except ValueError:
            return None
    for pattern in (SPACED, COMMAS_AND_WORDS if names else COMMAS):
        entries, place = [], 0
        while place < len(inside) and (match := pattern.match(inside, place)):
            entries.append(_entry(match[1].strip()))
            place = match.end()
        if place == len(inside):
            return entries
    return None


def _entry(text: str) -> str | float | None:
    if text.startswith(("np.", "numpy.")):
        text = text.partition("(")[2].removesuffix(")") or text
    if text[-1] in "'\"":
        return _unquoted(text)
    if text.lower() in MISSING:
        return None
    if not re.fullmatch(_DIGITS, text):
        return text
    try:
        return int(text)
    except ValueError:
        return float(text)


def _unquoted(text: str) -> str:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):  # a line end or a lone backslash
        return text.lstrip("bu")[1:-1]


read_tables = load
