"""The write-ahead log: entries come back, numbers never restart, strangers are refused."""

import pathlib
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from twotower import wal
from twotower.wal import ADD, REMOVE, WriteAheadLog


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "log"


@pytest.fixture
def log(path):
    with WriteAheadLog(path) as log:
        yield log


def fill(log, count):
    """Entry n adds key n with the vector (n, -n)."""
    for number in range(log.last + 1, log.last + 1 + count):
        log.append(ADD, "A", np.array([number]), np.array([[number, -number]]))


def numbers(log, since=0):
    return [entry.sequence for entry in log.since(since)]


def test_there_and_back(path):
    with WriteAheadLog(path) as log:
        assert (log.last, log.truncated, numbers(log)) == (0, 0, [])
        vectors = np.float32([[0.5, -2, 3e30], [1e-30, 0, 4]])
        assert log.append(ADD, "A", np.array([7, 2**62]), vectors) == 1
        assert log.append(REMOVE, "B", np.array([7])) == 2
    with WriteAheadLog(path) as log:
        first, second = log.since(0)
        assert (first.sequence, first.op, first.model_version) == (1, ADD, "A")
        assert first.keys.dtype == np.int64 and first.keys.tolist() == [7, 2**62]
        assert first.vectors.dtype == np.float32
        np.testing.assert_array_equal(first.vectors, vectors)
        assert (second.sequence, second.op, second.model_version) == (2, REMOVE, "B")
        assert second.keys.tolist() == [7] and second.vectors.shape == (1, 0)
        assert (log.last, numbers(log, 1), numbers(log, 2)) == (2, [2], [])


def test_more_entries_than_are_read_at_a_time(log):
    fill(log, 2 * wal.BATCH + 1)
    assert numbers(log) == list(range(1, 2 * wal.BATCH + 2))
    assert numbers(log, wal.BATCH - 1) == list(range(wal.BATCH, 2 * wal.BATCH + 2))


def test_an_iterator_ends_where_the_log_ended_when_it_was_made(log):
    fill(log, 2)
    entries = log.since(0)
    fill(log, 1)
    assert [entry.sequence for entry in entries] == [1, 2]


def test_numbers_never_restart(path):
    with WriteAheadLog(path) as log:
        fill(log, 3)
        log.truncate(2)
        assert (log.truncated, log.last, numbers(log, 2)) == (2, 3, [3])
        log.truncate(3)
        log.truncate(1)  # gone already: nothing to do
        assert (log.truncated, log.last) == (3, 3)
    with WriteAheadLog(path) as log:
        assert (log.truncated, log.last, numbers(log, 3)) == (3, 3, [])
        fill(log, 1)
        assert (log.truncated, numbers(log, 3)) == (3, [4])


def test_a_failed_append_leaves_no_gap(log):
    fill(log, 1)
    log._connection.execute("PRAGMA max_page_count = 8")  # 32 kB: the disk is full
    with pytest.raises(sqlite3.Error, match="full"):
        log.append(ADD, "A", np.arange(9000), np.ones((9000, 1)))
    assert (log.last, numbers(log)) == (1, [1])
    fill(log, 1)
    assert numbers(log) == [1, 2]


def test_what_is_not_there_is_not_passed_over(log):
    fill(log, 5)
    log.truncate(2)
    with pytest.raises(ValueError, match=r"after 1 were asked.*after 2, up to 5.*later snapshot"):
        log.since(1)
    with pytest.raises(ValueError, match=r"after 6 were asked.*another log, or this log was lost"):
        log.since(6)
    with pytest.raises(ValueError, match="ends at 5; got 6"):
        log.truncate(6)
    assert numbers(log, 2) == [3, 4, 5]


def test_truncated_while_read(log):
    fill(log, 2 * wal.BATCH)
    entries = log.since(0)
    next(entries)
    log.truncate(wal.BATCH + 3)
    with pytest.raises(ValueError, match=f"entry {wal.BATCH + 1} was truncated while read"):
        list(entries)


def test_threads_share_a_log(log):
    def append(thread):
        for number in range(25):
            given[thread].append(log.append(ADD, "A", [thread], [[number]]))

    given = {thread: [] for thread in range(4)}
    threads = [threading.Thread(target=append, args=(thread,)) for thread in given]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen = numbers(log)
        assert seen == list(range(1, len(seen) + 1))
    assert (
        sorted(number for some in given.values() for number in some)
        == numbers(log)
        == list(range(1, 101))
    )
    for entry in log.since(0):
        # Thread t's n-th append has the number it was given.
        assert given[int(entry.keys[0])][int(entry.vectors[0, 0])] == entry.sequence


@pytest.mark.parametrize(
    ("op", "keys", "vectors"),
    [
        ("replace", [1], [[1.0]]),
        (ADD, [1], None),
        (ADD, [1, 2], [[1.0]]),
        (ADD, [[1]], [[1.0]]),
        (ADD, [1], [1.0]),
        (REMOVE, [1], [[1.0]]),
    ],
)
def test_arrays_that_do_not_fit(log, op, keys, vectors):
    with pytest.raises(ValueError, match="Expected 'add' with keys"):
        log.append(op, "A", keys, vectors)
    assert log.last == 0


def test_an_entry_too_large(log):
    log._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 5000)
    with pytest.raises(ValueError, match="one entry holds 4000 bytes; got 100 items"):
        log.append(ADD, "A", np.arange(100), np.ones((100, 20)))
    assert log.last == 0


def test_what_is_acknowledged_is_synced(log):
    # kill -9 cannot show it, only a power cut could: 2 is FULL, an fsync for every commit.
    assert log._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert log._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# Strangers.


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        WriteAheadLog(path)
    assert str(path.parent) in str(caught.value)


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
    refused(path, "the log has format 7; this code reads 1")


@pytest.mark.parametrize("damage", ["cut", "overwritten", "table"])
def test_a_damaged_file(path, damage):
    with WriteAheadLog(path) as log:
        log.append(ADD, "A", np.arange(3000), np.ones((3000, 8)))
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "overwritten":
        path.write_bytes(content[:4096] + b"\x55" * 8192 + content[12288:])
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("ALTER TABLE entries RENAME COLUMN dim TO width")
        connection.close()
    refused(path, "damaged")


@pytest.mark.parametrize("change", ["op = 'pickle'", "keys = x'0102'", "dim = 5", "vectors = 3"])
def test_a_damaged_entry(path, change):
    with WriteAheadLog(path) as log:
        fill(log, 2)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE entries SET {change} WHERE sequence = 2")
    connection.close()
    with WriteAheadLog(path) as log, pytest.raises(ValueError, match="entry 2 is damaged"):
        list(log.since(0))


def test_an_empty_file_is_a_new_log(path):
    # What is left where a process ended between the file and its tables.
    path.touch()
    with WriteAheadLog(path) as log:
        fill(log, 1)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"wrong is no folder; make it, or correct the path"):
        WriteAheadLog(tmp_path / "wrong" / "log")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="cannot be opened as a log"):
        WriteAheadLog(tmp_path)


def test_one_process_at_a_time(log, path):
    fill(log, 1)
    code = "import sys; from twotower.wal import WriteAheadLog; WriteAheadLog(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 1 and "open in another process?" in done.stderr
    fill(log, 1)
    assert numbers(log) == [1, 2]
