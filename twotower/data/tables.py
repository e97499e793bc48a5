"""Tables: your own Parquet or CSV files -> Dataset, and a Dataset -> Parquet."""

import os
import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from twotower.data.dataset import REQUIRED, Dataset

# Seconds of the year 5138: a larger timestamp is in milliseconds or finer.
LATEST = 100_000_000_000
STRINGS = {
    "interactions": ("event", "search_text", "device", "country"),
    "items": ("title", "description", "maker"),
}
NUMBERS = {"interactions": ("rating", "value")}
TIMES = {"interactions": ("timestamp",), "items": ("released",)}


def load(
    interactions: str | os.PathLike,
    items: str | os.PathLike | None = None,
    users: str | os.PathLike | None = None,
    name: str | None = None,
) -> Dataset:
    """A Dataset from one to three files, Parquet (`.parquet`) or CSV (anything else).

    - Ids become strings: 7 and "7" are the same id, "07" (in CSV, too) is another.
    - Times (`timestamp`, `released`) are whole seconds since 1970, dates, or ISO 8601 texts; they
      are UTC where they name no zone.
    - `genres` is a list of strings or one string with `|` between them. A list of numbers, such as
      an embedding, becomes a float32 vector; all rows must be of one length.
    - Missing strings become "", missing ratings and values NaN, a missing year 0.
    - Further columns stay: those of users as strings, others as they are (CSV: as numbers where
      every value is one).

    Args:
        interactions: A file with `user_id`, `item_id`, `timestamp` and the optional columns of
            `INTERACTION_COLUMNS`, or a directory that `save` wrote (then it is the only one).
        items: A file with `item_id`; without one, items are known by their ids alone.
        users: A file with `user_id`; without one, users are known by their ids alone.
        name: Name of the dataset; the first file's by default.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read, a missing column, a value that its column cannot
            hold (the row is named, counted from 0), or an id without its row in `items` or
            `users`.
    """
    paths = {"interactions": pathlib.Path(interactions), "items": items, "users": users}
    name = name or paths["interactions"].stem
    if paths["interactions"].is_dir():
        if items is not None or users is not None:
            raise ValueError(
                f"{interactions} is a directory, which brings its own items and users."
            )
        folder = paths["interactions"]
        paths = {table: folder / f"{table}.parquet" for table in REQUIRED}
    frames = {
        table: _table(pathlib.Path(path), table)
        for table, path in paths.items()
        if path is not None
    }
    for table, column in (("items", "item_id"), ("users", "user_id")):
        if table not in frames:
            frames[table] = pd.DataFrame({column: frames["interactions"][column].unique()})
    return Dataset(name, frames["interactions"], frames["items"], frames["users"])


def save(dataset: Dataset, directory: str | os.PathLike) -> None:
    """Writes `interactions.parquet`, `items.parquet` and `users.parquet`, for `load(directory)`.

    What is loaded again has the same fingerprint.
    """
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for table in REQUIRED:
        frame = getattr(dataset, table)
        pyarrow.parquet.write_table(
            pa.Table.from_pandas(frame, preserve_index=False), folder / f"{table}.parquet"
        )


def _table(path: pathlib.Path, table: str) -> pd.DataFrame:
    """One file as a table of the Dataset, with errors that name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r} to read {table} from.")
    is_parquet = path.suffix in (".parquet", ".pq")
    try:
        if is_parquet:
            frame = pyarrow.parquet.read_table(path).to_pandas()
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:  # pandas', pyarrow's and Unicode errors are ValueErrors
        kind = "Parquet" if is_parquet else "CSV"
        raise ValueError(f"{path} cannot be read as {kind}: {error}. Is it whole?") from error
    missing = [column for column in REQUIRED[table] if column not in frame]
    if missing:
        raise ValueError(
            f"{path} lacks {missing}; {table} need {list(REQUIRED[table])}, and this file has "
            f"{list(frame.columns)}. Rename its columns."
        )
    try:
        return pd.DataFrame(
            {column: _column(frame[column], table, not is_parquet) for column in frame}
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _column(values: pd.Series, table: str, texts: bool) -> pd.Series:
    """A column in the form the Dataset wants; `texts` says that the file knew strings only."""
    column = str(values.name)
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if column in ("user_id", "item_id"):
        return _ids(values)
    if column in TIMES.get(table, ()):
        return _times(values)
    if column in NUMBERS.get(table, ()):
        return _numbers(values).astype(np.float32)
    if column in STRINGS.get(table, ()) or table == "users":
        return _strings(values)
    if column == "year":
        return _numbers(values).fillna(0).astype(np.int64)
    if column == "genres":
        return values.map(_genres).astype(object)
    present = values.dropna()
    if len(present) and isinstance(present.iloc[0], np.ndarray | list | tuple):
        return _lists(values)
    if texts:
        numbers = pd.to_numeric(values.replace("", None), errors="coerce")
        if (numbers.notna() | (values == "")).all() and (values != "").any():
            return numbers
    return values


def _ids(values: pd.Series) -> pd.Series:
    if values.isna().any() or (values.astype(str) == "").any():
        row = int((values.isna() | (values.astype(str) == "")).to_numpy().argmax())
        raise ValueError(f"{values.name} is missing in row {row}. Every row needs one.")
    if pd.api.types.is_float_dtype(values.dtype):
        raise ValueError(
            f"{values.name} holds floats such as {values.iloc[0]}; ids must be strings or whole "
            "numbers. (Whole numbers turn into floats where a row has none.)"
        )
    return values.astype(str)


def _strings(values: pd.Series) -> pd.Series:
    return values.astype(object).where(values.notna(), "").map(str)


def _numbers(values: pd.Series) -> pd.Series:
    """As float64, NaN where missing."""
    numbers = pd.to_numeric(values, errors="coerce").astype(np.float64)
    missing = values.isna() | values.astype(str).str.lower().isin(("", "nan", "na", "null", "none"))
    _refuse(values, numbers.isna() & ~missing, "a number")
    return numbers


def _times(values: pd.Series) -> pd.Series:
    """As int64 seconds since 1970."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        seconds = values
    elif pd.api.types.is_datetime64_any_dtype(values.dtype):
        seconds = _seconds(values)
    else:
        seconds = pd.to_numeric(values, errors="coerce")
        if seconds.isna().any():
            text = values.astype(str).where(seconds.isna() & values.notna(), "")
            dates = pd.to_datetime(text, errors="coerce", utc=True, format="ISO8601")
            seconds = seconds.fillna(_seconds(dates))
    strange = seconds.isna() | (seconds % 1 != 0)
    _refuse(values, strange, "whole seconds since 1970 or an ISO 8601 date")
    _refuse(values, seconds.abs() > LATEST, "seconds: are these milliseconds? Divide by 1000")
    return seconds.astype(np.int64)


def _seconds(dates: pd.Series) -> pd.Series:
    """Dates to seconds, NaN for none; fractions of a second are cut off."""
    if dates.dt.tz is None:
        dates = dates.dt.tz_localize("UTC")
    return (dates - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)


def _refuse(values: pd.Series, wrong: pd.Series, expected: str) -> None:
    """ValueError at the first row where `wrong` holds."""
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise ValueError(f"{values.name} in row {row} is {values.iloc[row]!r}, not {expected}.")


def _genres(value) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part for part in value.split("|") if part)
    return () if value is None or np.isscalar(value) else tuple(map(str, value))


def _lists(values: pd.Series) -> pd.Series:
    """Lists of strings as tuples, lists of numbers as float32 vectors of one length."""
    lists = [() if value is None or np.isscalar(value) else value for value in values]
    first = next((entry for value in lists for entry in value), "")
    if isinstance(first, str):
        return pd.Series([tuple(value) for value in lists], values.index, object)
    lengths = np.array([len(value) for value in lists])
    _refuse(values, pd.Series(lengths != lengths[0]), f"a vector of length {lengths[0]}")
    vectors = np.asarray([np.asarray(value, np.float32) for value in lists])
    return pd.Series(list(vectors), values.index)
