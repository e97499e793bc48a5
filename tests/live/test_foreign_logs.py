"""Files at the path of a log that are none, or those of another one, are refused and stay as they
are."""

import hashlib
import os
import shutil
import sqlite3

import numpy as np
import pytest
from small_logs import fill, numbers, refused

from twotower.live.log import WriteAheadLog


def test_a_file_of_something_else(path):
    path.write_bytes(b"key,vector\n" * 500)
    refused(path, "cannot be opened as a log: file is not a database")
    assert path.read_bytes() == b"key,vector\n" * 500


def test_a_database_of_something_else(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE entries (sequence INTEGER)")
    connection.close()
    before = path.read_bytes()
    refused(path, "no log of index changes")
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["log"]


def test_another_format_version(path):
    WriteAheadLog(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    refused(path, r"the log has format 7\. This code reads format 3\. With the twotower that wrote")


@pytest.mark.parametrize("killed", [False, True])
def test_a_log_of_the_first_format(path, tmp_path, killed):
    # As it was: entries in a second file until the log was closed.
    old = tmp_path / "old"
    connection = sqlite3.connect(old, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(
        "CREATE TABLE entries (sequence INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT, "
        "model_version TEXT, keys BLOB, vectors BLOB, dim INTEGER)"
    )
    connection.execute("PRAGMA application_id = 0x32746F77")
    connection.execute("PRAGMA user_version = 1")
    if killed:
        shutil.copy(f"{old}-wal", f"{path}-wal")
    else:
        connection.close()
    shutil.copy(old, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    refused(path, "format 1.* With the twotower that wrote it, .* snapshot; then start here from")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    connection.close()


def test_a_log_of_the_second_format_goes_on(path):
    """Its entries do not say which items their keys are; they keep their digests."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA auto_vacuum = FULL")
        connection.execute(
            "CREATE TABLE entries (sequence INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT, "
            "model_version TEXT, keys BLOB, vectors BLOB, dim INTEGER, digest BLOB)"
        )
        # Entry 1 removes key 3: sha256 of the digest before it, what it holds, and the lengths.
        before = bytes(range(32))
        digest = hashlib.sha256(before + b"1 0 6 1 8 0 removeA" + (3).to_bytes(8, "little"))
        connection.execute("INSERT INTO entries VALUES (0, '', '', x'', x'', 0, ?)", (before,))
        connection.execute(
            "INSERT INTO entries VALUES (1, 'remove', 'A', x'0300000000000000', x'', 0, ?)",
            (digest.digest(),),
        )
        connection.execute("PRAGMA application_id = 0x32746F77")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    for opened in (1, 2):
        with WriteAheadLog(path) as log:
            entry = next(log.since(0))
            assert (entry.op, entry.keys.tolist(), entry.id_hashes.tolist()) == ("remove", [3], [0])
            log.append("remove", "A", np.array([4, 5]), id_hashes=np.uint64([9, 8]))
            assert [e.id_hashes.tolist() for e in log.since(1)] == [[9, 8]] * opened


def test_a_digest_tells_one_log_from_another(path, tmp_path):
    with WriteAheadLog(path) as log, WriteAheadLog(tmp_path / "other") as other:
        for one in (log, other):
            fill(one, 3)
            one.truncate(1)
        for sequence in (1, 2, 3):
            digest = log.digest(sequence)
            assert [e.sequence for e in log.since(sequence, digest)] == numbers(log, sequence)
            with pytest.raises(ValueError, match=f"another entry {sequence} than the snapshot"):
                other.since(sequence, digest)
        with pytest.raises(ValueError, match="entry 4 is missing"):
            log.digest(4)


def test_an_empty_file_is_no_log(path):
    path.touch()
    refused(path, "is empty, and no log ever is")
    assert path.stat().st_size == 0


@pytest.mark.parametrize("side", ["-journal", "-wal", "-shm"])
def test_what_is_left_of_a_log_that_is_gone(path, side):
    left = path.with_name("log" + side)
    left.write_bytes(b"left")
    refused(path, f"log is gone, and log{side} is left of it")
    assert [p.name for p in path.parent.iterdir()] == [left.name]


def test_a_wal_of_something_else(log, path):
    # SQLite would lay its pages over those of the log.
    log.close()
    path.with_name("log-wal").write_bytes(b"left")
    refused(path, "log-wal is no part of this log: it belongs to another database, or")


@pytest.mark.parametrize("change", ["replaced", "moved", "deleted"])
def test_another_file_at_its_path(log, path, tmp_path, change):
    """A restored backup: nothing is acknowledged that no restart would find."""
    fill(log, 2)
    shutil.copy(path, tmp_path / "backup")
    if change == "replaced":
        os.replace(tmp_path / "backup", path)
    elif change == "moved":
        path.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    with pytest.raises(ValueError, match="replaced or moved"):
        fill(log, 1)
    with pytest.raises(ValueError, match="replaced or moved"):
        log.truncate(1)
    assert numbers(log) == [1, 2]  # what was acknowledged can still be read
    if change == "moved":
        (tmp_path / "elsewhere").rename(path)
        fill(log, 1)
        assert numbers(log) == [1, 2, 3]
