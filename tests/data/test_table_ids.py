"""Ids of own files: of other types, spoilt by other programs, and in no other table."""

import decimal
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
from small_tables import plays

from twotower.data import tables


def test_uuids_and_long_numbers_are_ids(tmp_path):
    ids = [uuid.UUID(int=5), uuid.UUID(int=2**100)]
    numbers = pa.array([decimal.Decimal(10**25), decimal.Decimal(3)], pa.decimal128(30, 0))
    table = plays(user_id=pa.array([i.bytes for i in ids], pa.uuid()), item_id=numbers)
    pq.write_table(table, tmp_path / "plays.parquet")
    found = tables.read_tables(tmp_path / "plays.parquet").interactions
    assert found["user_id"].tolist() == [str(i) for i in ids]
    assert found["item_id"].tolist() == ["10000000000000000000000000", "3"]
