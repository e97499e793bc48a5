"""Parquet files: the types of columns that are read, and those that are refused."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tables import NAN, NEW_YEAR, plays

from twotower.data import tables

REFUSED = {
    "a gap in ids": (plays(user_id=pa.array([1, None])), "row 1: user_id is missing"),
    "no ids": (plays(user_id=pa.nulls(2)), "row 0: user_id is missing"),
    "float ids": (plays(user_id=pa.array([1.0, 2.0])), "user_id holds double such as 1.0; ids"),
    "decimal ids": (
        plays(user_id=pa.array([decimal.Decimal("1.5"), decimal.Decimal("2")])),
        "user_id holds double such as 1.5; ids must",
    ),
    "dates for ids": (plays(user_id=pa.array([1, 2], pa.date32())), "user_id holds date32"),
    "bytes that are no text": (
        plays(item_id=pa.array([b"a", b"\xe9"])),
        "item_id is of the type binary.*not UTF-8",
    ),
    "bytes in lists": (
        plays(tags=pa.array([None, [b"\xe9"]])),
        "tags is of the type list<.*not UTF-8",
    ),
    "no time": (plays(timestamp=pa.array([5, None])), "row 1: timestamp is missing"),
    "milliseconds": (plays(timestamp=pa.array([5, 1704067200000])), "row 1: .*milliseconds"),
    "dates as numbers": (plays(timestamp=pa.array([20240101, 20240102])), "row 0: .*reads as a d"),
    "time of day": (
        plays(timestamp=pa.array([1, 2], pa.time32("ms"))),
        r"timestamp is of the type time32\[ms\], which no column can have",
    ),
    "a duration": (
        plays(value=pa.array([1, 2], pa.duration("s"))),
        "value is of the type duration",
    ),
    # pandas stores months since 1970, which would be seconds.
    "periods": (
        pa.Table.from_pandas(
            plays().to_pandas().assign(timestamp=pd.period_range("2020-01", periods=2, freq="M"))
        ),
        r"timestamp is of the type .*period.*, which no column can have.*as text",
    ),
    "records": (plays(more=pa.array([{"a": 1}, None])), "more is of the type struct<a: int64>"),
    "a map": (
        plays(more=pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64()))),
        "type map",
    ),
    "truth for numbers": (plays(rating=pa.array([None, True])), "row 1: rating is True, not a num"),
    "words for numbers": (plays(rating=pa.array(["4", "x"])), "row 1: rating is 'x', not a number"),
    "infinity": (
        plays(rating=pa.array([NAN, np.inf])),
        "row 1: rating is inf; numbers must be fin",
    ),
    "infinity in a list": (
        plays(v=pa.array([[1.0], [np.inf]])),
        "row 1: v is .*inf.*must be finite",
    ),
    "vectors of two lengths": (plays(v=pa.array([[1.0], [1.0, 2.0]])), "row 1: v is .*of length 1"),
    "matrices": (plays(v=pa.array([[[1.0]], [[1.0, 2.0]]])), "row [01]: v is .*list of numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_parquet(case, tmp_path):
    table, message = REFUSED[case]
    pq.write_table(table, tmp_path / "plays.parquet")
    with pytest.raises(ValueError, match=f"plays.parquet.*{message}"):
        tables.read_tables(tmp_path / "plays.parquet")
    # The third part of a folder: its rows are counted by themselves.
    folder = tmp_path / "folder"
    folder.mkdir()
    empty = table.slice(0, 0)
    pq.write_table(empty, folder / "part-0.parquet")
    pq.write_table(empty, folder / "part-1.parquet")
    pq.write_table(table, folder / "part-2.parquet")
    file = "part-2" if message.startswith("row") else "part-."
    with pytest.raises(ValueError, match=f"{file}.parquet.*{message}"):
        tables.read_tables(folder)


def test_parquet_of_other_types(tmp_path):
    pd.DataFrame(
        {
            "user_id": [1, 2],
            "item_id": pd.Categorical([20, 10]),
            "timestamp": pd.to_datetime(["2024-01-01T00:00:01.9", "2024-01-01T00:00:00.0"]),
            "value": [3, 4],
            "device": ["tv", None],
        }
    ).to_parquet(tmp_path / "plays.parquet")
    pd.DataFrame(
        {
            "item_id": [10, 20],
            "genres": [["War"], None],
            "year": [2001.0, None],
            "released": [datetime.date(1970, 1, 2), datetime.date(1970, 1, 1)],
            "image": [[1.0, 2.0], [3.0, 4.0]],
            "tags": [["a", "b"], []],
        }
    ).to_parquet(tmp_path / "films.parquet")
    dataset = tables.read_tables(tmp_path / "plays.parquet", tmp_path / "films.parquet")
    frame, items = dataset.interactions, dataset.items
    assert frame["user_id"].tolist() == ["1", "2"]
    assert frame["item_id"].tolist() == ["20", "10"]
    assert frame["timestamp"].tolist() == [NEW_YEAR + 1, NEW_YEAR]
    assert frame["value"].dtype == np.float32
    assert frame["device"].tolist() == ["tv", ""]
    assert items["genres"].tolist() == [("War",), ()]
    np.testing.assert_array_equal(items["year"], [2001, np.nan])
    assert items["released"].tolist() == [86_400, 0]
    np.testing.assert_array_equal(np.stack(items["image"]), np.float32([[1, 2], [3, 4]]))
    assert items["image"][0].dtype == np.float32
    assert items["tags"].tolist() == [("a", "b"), ()]
