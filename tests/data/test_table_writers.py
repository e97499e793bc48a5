"""One dataset, written by every kind of writer: the same fingerprint, or one clear error."""

import numpy as np
import pytest
from table_writers import WRITERS, parquet
from three_tables import EXPECTED, ROWS, load_all

from twotower.data import tables


def singly(value):
    """A number in the precision that counts."""
    return np.float32(value) if isinstance(value, float) else value


@pytest.mark.parametrize("writer", WRITERS)
def test_one_fingerprint(writer, tmp_path):
    WRITERS[writer](tmp_path)
    found = load_all(tmp_path)
    for table in ROWS:
        frame, expected = getattr(found, table), getattr(EXPECTED, table)
        for column in expected:
            for value, other in zip(frame[column], expected[column], strict=True):
                np.testing.assert_array_equal(singly(value), singly(other), column)
        assert set(frame.columns) - set(expected.columns) <= {"nothing"}
    assert found.fingerprint() == EXPECTED.fingerprint()


def test_what_is_saved_is_loaded_again(tmp_path):
    parquet()(tmp_path)
    tables.save(load_all(tmp_path), tmp_path / "saved")
    assert tables.read_tables(tmp_path / "saved").fingerprint() == EXPECTED.fingerprint()


@pytest.mark.parametrize("writer", ["CSV", "CSV, quoted", "Parquet", "list views"])
@pytest.mark.parametrize(
    "num_damages", [pytest.param(10), pytest.param(500, marks=pytest.mark.slow)]
)
def test_a_damaged_file_is_read_or_named(writer, num_damages, tmp_path):
    """Bits flipped, bytes cut out, put in or cut off: a table, or a ValueError with the file."""
    WRITERS[writer](tmp_path)
    rng = np.random.default_rng(num_damages)
    for _ in range(num_damages):
        path = next(tmp_path.glob(f"{rng.choice(list(ROWS))}*"))
        whole = path.read_bytes()
        data, place = bytearray(whole), int(rng.integers(len(whole)))
        damage = rng.integers(4)
        if damage == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif damage == 1:
            del data[place : place + int(rng.integers(1, 5))]
        elif damage == 2:
            data[place:place] = bytes([rng.choice(list(b',"\n\r\\\0\xff 0|['))])
        else:
            del data[place:]
        path.write_bytes(data)
        try:
            load_all(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error)
        path.write_bytes(whole)
