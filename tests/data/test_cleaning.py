"""Cleaning: packed types, lists, dates written as numbers and long whole numbers."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from test_dataset import NAN, make

from twotower.data import tables
from twotower.data.dataset import Dataset


def arrow(values, kind):
    """A pandas column that is of an Arrow type."""
    return pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values, kind)))


WORDS = pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize(
    ("table", "column", "given", "form"),
    [
        ("items", "title", arrow(["One", None, "Two"], WORDS), ["One", "", "Two"]),
        ("items", "title", arrow(["One", None, "Two"], pa.string_view()), ["One", "", "Two"]),
        ("items", "item_id", arrow(["a", "b", "c"], pa.string_view()), ["a", "b", "c"]),
        ("items", "note", arrow([None] * 3, WORDS), ["", "", ""]),
        ("items", "stars", arrow([1, None, 2], pa.dictionary(pa.int8(), pa.int64())), [1, NAN, 2]),
        ("items", "tags", arrow([["x"], None, []], pa.list_(pa.string_view())), [("x",), (), ()]),
        ("users", "city", arrow(["Rome", None, "Bern"], WORDS), ["Rome", "", "Bern"]),
        ("interactions", "event", arrow(["skip", None, "click", "skip"], WORDS),
         ["skip", "", "click", "skip"]),
        ("items", "title", pd.arrays.SparseArray(["One", None, "Two"], None, dtype=object),
         ["One", "", "Two"]),
    ],
)  # fmt: skip
def test_packed_columns_are_unpacked(table, column, given, form):
    found = getattr(make(**{table: {column: given}}), table)[column]
    for value, expected in zip(found, form, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (arrow([{"a": 1}, None, None], pa.struct([("a", pa.int64())])), r"row 0: x is \{'a': 1\}"),
        (arrow([None, [("a", 1)], None], pa.map_(pa.string(), pa.int64())), "row 1: x is .*'a', 1"),
        (arrow([None, 5, None], pa.duration("s")), "row 1: x is .*seconds=5.*, not text"),
        (pd.Series([None, 1j, 2]), "row 1: x is 1j, not text"),
    ],
)
def test_kinds_that_no_column_has(given, message):
    with pytest.raises(ValueError, match=message):
        make(items={"x": given})


MASKED = np.ma.masked_array([1.0, 2.0], mask=[True, False])


@pytest.mark.parametrize(
    "row",
    [
        [datetime.date(2011, 8, 20)],
        [pd.Timestamp("2011-08-20"), None],
        [pd.Timedelta(5, "s")],
        [pd.NaT],
        np.array(["2011-08-20"], "datetime64[D]"),
        np.array(["2011-08-20"], "datetime64[ns]"),
        np.array([5], "timedelta64[s]"),
        np.array([1j, 2]),
        [1.0, 1j],
        [1.0, "2"],
        MASKED,
    ],
)
def test_lists_that_are_no_vectors(row):
    with pytest.raises(ValueError, match=r"(?s)items, row 1: sound is .*, not a list of numbers"):
        make(items={"sound": pd.Series([None, row, None], dtype=object)})


@pytest.mark.parametrize("row", [np.array(5.0), np.array("x"), np.ones((1, 1)), np.ones((2, 2))])
@pytest.mark.parametrize("column", ["sound", "genres"])
def test_arrays_of_other_dimensions(column, row):
    with pytest.raises(ValueError, match=rf"(?s)items, row 1: {column} is .*, not a list of one"):
        make(items={column: pd.Series([None, row, None], dtype=object)})


def test_vectors_of_all_kinds_of_numbers():
    rows = [[decimal.Decimal("1.5"), True], np.array([True, False]), (np.float16(2), np.int8(3))]
    found = make(items={"sound": pd.Series(rows, dtype=object)}).items["sound"].tolist()
    np.testing.assert_array_equal(found, [[1.5, 1], [1, 0], [2, 3]])


@pytest.mark.parametrize(
    ("table", "column", "times", "row"),
    [
        ("interactions", "timestamp", [201108, 201109, 201108, 201110], 0),
        ("interactions", "timestamp", [110820, 110821, 91231, 101], 0),
        ("interactions", "timestamp", [2011082010, 2011082011, 2011082023, 2011082100], 0),
        ("interactions", "timestamp", [1313798400, 1313798401, 20110820, 1313798402], 2),
        ("items", "released", [None, 201108, 199512], 1),
        ("items", "released", [2011, 201108, 201109], 0),
        ("items", "released", [None, 1313798400, 19950101], 2),
        ("items", "released", [1313798400, 1313798400, pd.NA], None),
    ],
)
def test_dates_written_as_numbers(table, column, times, row):
    if row is None:
        make(**{table: {column: times}})
        return
    with pytest.raises(ValueError, match=rf"{table}, row {row}: {column} is .*reads as .*write 20"):
        make(**{table: {column: times}})


@pytest.mark.parametrize(
    "times",
    [
        [0, 1, 100, 100],
        [201108] * 4,
        [101, 102, 103, 1231],  # numbers of rows, and not days of the year 2000
        [201108, 201109, 201140, 201108],  # neither a month nor a day
        [110820, 110821, 110832, 110820],
        [2011082010, 2011082011, 2011082024, 2011082010],
        [20110000, 20110101, 20111301, 20119900],  # seconds of 1970, of which one reads as a day
        [1313798400, 1313798401, 201108, 110820],
    ],
)
def test_times_that_are_seconds(times):
    assert make({"timestamp": times}).timestamps.tolist() == times


@pytest.mark.parametrize(
    "given",
    [
        [2**53 + 1, 5, 6],
        [-(2**53) - 1, None, 6],
        pd.array([2**53 + 1, None, 6], "Int64"),
        np.uint64([2**64 - 1, 5, 6]),
        arrow([2**53 + 1, 5, None], pa.int64()),
        pd.Series([decimal.Decimal(2**60 + 1), None, decimal.Decimal(5)]),
        pd.Series([decimal.Decimal(10**35 + 1)] * 3),
        arrow([decimal.Decimal(2**60 + 1), None, None], pa.decimal128(38, 0)),
    ],
)
def test_long_whole_numbers_are_text(given):
    values = pd.Series(given, dtype=object if isinstance(given, list) else None)
    expected = ["" if pd.isna(value) else str(int(value)) for value in values]
    assert make(items={"code": values}).items["code"].tolist() == expected


def test_whole_numbers_that_a_float_holds():
    assert make(items={"code": [2**53, -(2**53), 1]}).items["code"].tolist() == [2**53, -(2**53), 1]
    prices = pd.Series([decimal.Decimal("1.5"), None, decimal.Decimal(2)])
    assert make(items={"price": prices}).items["price"][[0, 2]].tolist() == [1.5, 2.0]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_long_whole_numbers_in_files(tmp_path, ending):
    frames = {
        "interactions": pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [100]}),
        "items": pd.DataFrame({"item_id": ["a", "b", "c"], "code": [2**53 + 1, 5, 6]}),
    }
    paths = [tmp_path / f"{name}.{ending}" for name in frames]
    for frame, path in zip(frames.values(), paths, strict=True):
        frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    assert tables.read_tables(*paths).items["code"].tolist() == [str(2**53 + 1), "5", "6"]


@pytest.mark.parametrize("genres", [[1, None], [1.5, 2.0], ["2011-08-20", None], ["War", None]])
def test_genres_of_a_frame_are_lists(genres):
    if genres[0] == "2011-08-20":
        genres = pd.to_datetime(genres)
    plays = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [5]})
    films = pd.DataFrame({"item_id": ["a", "b"], "genres": genres})
    with pytest.raises(ValueError, match=r"items, row 0: genres is .*, not a list"):
        Dataset("made", plays, films, pd.DataFrame({"user_id": ["u"]}))
