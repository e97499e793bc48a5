"""Ids of own files: of other types, spoilt by other programs, and in no other table."""

import decimal
import uuid

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tables import plays

from twotower.data import tables
from twotower.data.dataset import Dataset


def test_uuids_and_long_numbers_are_ids(tmp_path):
    ids = [uuid.UUID(int=5), uuid.UUID(int=2**100)]
    numbers = pa.array([decimal.Decimal(10**25), decimal.Decimal(3)], pa.decimal128(30, 0))
    table = plays(user_id=pa.array([i.bytes for i in ids], pa.uuid()), item_id=numbers)
    pq.write_table(table, tmp_path / "plays.parquet")
    found = tables.read_tables(tmp_path / "plays.parquet").interactions
    assert found["user_id"].tolist() == [str(i) for i in ids]
    assert found["item_id"].tolist() == ["10000000000000000000000000", "3"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["7", " 8"], "row 1: item_id is ' 8', with a blank .*sep=', '"),
        (["7", "8\u00a0"], "row 1: item_id is .*, with a blank"),
        (["7", "\ufeff8"], r"row 1: item_id is '\\ufeff8', with a character that nobody sees"),
        (["7", "8\u200b"], r"row 1: item_id is '8\\u200b', with a character that nobody sees"),
        (["7", "nan"], "row 1: item_id is 'nan', as programs write a missing value"),
        (["7", "<NA>"], "row 1: item_id is '<NA>', as programs write a missing value"),
        (["7", "12.0"], "row 1: item_id is '12.0', a whole number written as a float; write 12"),
        (["7", "1.23457E+17"], r"row 1: item_id is '1.23457E\+17', a number that a spreadsheet"),
    ],
)
def test_spoilt_ids(tmp_path, ids, message):
    """Each would be an item that nothing else calls so: refused in files and in frames."""
    plays = pd.DataFrame({"user_id": "u", "item_id": ids, "timestamp": [5, 6]})
    plays.to_parquet(tmp_path / "plays.parquet")
    with pytest.raises(ValueError, match=f"plays.parquet, {message}"):
        tables.read_tables(tmp_path / "plays.parquet")
    with pytest.raises(ValueError, match=f"items, {message}"):
        Dataset("made", plays, pd.DataFrame({"item_id": ids}), pd.DataFrame({"user_id": ["u"]}))


def test_ids_that_only_look_spoilt(tmp_path):
    ids = ["1.0", "1.1", "12e5", "Nan", "na", "a b", "2E+170"]
    plays = pd.DataFrame({"user_id": "u", "item_id": ids, "timestamp": range(5, 12)})
    plays.to_csv(tmp_path / "plays.csv", index=False)
    assert tables.read_tables(tmp_path / "plays.csv").items["item_id"].tolist() == ids


@pytest.mark.parametrize("column", ["item_id", "user_id"])
def test_a_table_of_other_ids_is_refused(tmp_path, column):
    """Nothing would be known of any item, and only a note would say so."""
    (tmp_path / "plays.csv").write_text("user_id,item_id,timestamp\n7,7,5\n8,8,6\n")
    (tmp_path / "rest.csv").write_text(f"{column}\n07\n08\n")
    paths = {f"{column[:4]}s": tmp_path / "rest.csv"}
    with pytest.raises(ValueError, match=f"plays.csv, line 2: {column} is '7', and no .* is '07'"):
        tables.read_tables(tmp_path / "plays.csv", **paths)
