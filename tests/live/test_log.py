"""The write-ahead log: entries come back, numbers never restart, and one process writes."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from forks import in_a_fork
from small_logs import fill, last, numbers

from twotower.live.entries import ADD, REMOVE
from twotower.live.log import WriteAheadLog


def test_there_and_back(path):
    with WriteAheadLog(path) as log:
        assert (last(log), log.truncated, numbers(log)) == (0, 0, [])
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
        assert (last(log), numbers(log, 1), numbers(log, 2)) == (2, [2], [])


def test_an_iterator_ends_where_the_log_ended_when_it_was_made(log):
    fill(log, 2)
    entries = log.since(0)
    fill(log, 1)
    assert [entry.sequence for entry in entries] == [1, 2]


def test_numbers_never_restart(path):
    with WriteAheadLog(path) as log:
        fill(log, 3)
        log.truncate(2)
        assert (log.truncated, last(log), numbers(log, 2)) == (2, 3, [3])
        log.truncate(3)
        log.truncate(1)  # gone already: nothing to do
        assert (log.truncated, last(log)) == (3, 3)
    with WriteAheadLog(path) as log:
        assert (log.truncated, last(log), numbers(log, 3)) == (3, 3, [])
        fill(log, 1)
        assert (log.truncated, numbers(log, 3)) == (3, [4])


def test_a_failed_append_leaves_no_gap(log):
    fill(log, 1)
    log._connection.execute("PRAGMA max_page_count = 8")  # 32 kB: the disk is full
    with pytest.raises(sqlite3.Error, match="full"):
        log.append(ADD, "A", np.arange(9000), np.ones((9000, 1)))
    assert (last(log), numbers(log)) == (1, [1])
    fill(log, 1)
    assert numbers(log) == [1, 2]


def test_what_is_not_there_is_not_passed_over(log):
    fill(log, 5)
    log.truncate(2)
    with pytest.raises(ValueError, match=r"after 1 are not.*after 2, up to 5.*later snapshot"):
        log.since(1)
    with pytest.raises(ValueError, match=r"after 6 are not in.*another log, or this log was lost"):
        log.since(6)
    with pytest.raises(ValueError, match="ends at 5; got 6"):
        log.truncate(6)
    assert numbers(log, 2) == [3, 4, 5]


def test_truncated_while_read(log):
    fill(log, 5)
    entries = log.since(0)
    next(entries)
    log.truncate(3)
    with pytest.raises(ValueError, match="entry 2 was truncated while read"):
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
    assert last(log) == 0


def test_an_entry_too_large(log):
    log._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 5000)
    with pytest.raises(ValueError, match="one entry holds 4000 bytes; got 100 items"):
        log.append(ADD, "A", np.arange(100), np.ones((100, 20)))
    assert last(log) == 0


def test_what_is_acknowledged_is_synced(log):
    # kill -9 cannot show it, only a power cut could: 2 is FULL, an fsync for every commit.
    assert log._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert log._connection.execute("PRAGMA journal_mode").fetchone() == ("truncate",)


def test_one_process_at_a_time_whatever_reads_the_file(log, path, tmp_path):
    """A copy that this process makes ends SQLite's lock on the file."""
    fill(log, 1)
    shutil.copy(path, tmp_path / "copy")
    code = "import sys; from twotower.live.log import WriteAheadLog; WriteAheadLog(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 1 and "It is open in another process" in done.stderr
    with pytest.raises(ValueError, match="or in this one"):
        WriteAheadLog(path)
    fill(log, 1)
    assert numbers(log) == [1, 2]
    log.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy", "log", "log-journal"]


def test_a_child_does_not_keep_the_log(path):
    """The process that opened it may start it again while a process forked from it lives on."""
    log = WriteAheadLog(path)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)  # until the parent has seen what it wants to see
        os._exit(0)
    os.close(reading)
    try:
        log.close()
        with WriteAheadLog(path) as log:
            fill(log, 1)
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def test_a_log_behind_a_link(log, path, tmp_path):
    fill(log, 2)
    log.close()
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link"
    link.symlink_to(path)
    with WriteAheadLog(link) as log:
        assert log.path == path and numbers(log) == [1, 2]
    link.unlink()
    link.symlink_to(tmp_path / "later")
    with WriteAheadLog(link) as log:
        fill(log, 1)
    assert (tmp_path / "later").is_file() and link.is_symlink()


def test_a_new_log_is_whole_or_not_there(path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        WriteAheadLog(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint8])
def test_numbers_of_numpy_are_numbers(log, number):
    """SQLite takes them for bytes, which are larger than any number: truncating dropped all."""
    fill(log, 5)
    log.truncate(number(2))
    assert log.truncated == 2 and numbers(log, number(2)) == [3, 4, 5]
    assert log.digest(number(4)) == log.digest(4)
    assert numbers(log, number(3)) == [4, 5]


@pytest.mark.parametrize("number", [2.5, "2", None, np.array([2]), np.float32(2)])
def test_what_is_no_whole_number_is_refused(log, number):
    fill(log, 3)
    for call in (log.truncate, log.since, log.digest):
        with pytest.raises(ValueError, match="sequence must be an integer of 0 or more"):
            call(number)
    assert numbers(log) == [1, 2, 3]


def test_a_home_is_expanded_and_an_address_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with WriteAheadLog("~/log") as log:
        assert log.path == (tmp_path / "log").resolve()
    with pytest.raises(ValueError, match="is an address"):
        WriteAheadLog("gs://bucket/log")


def test_the_file_shrinks(log, path):
    for _ in range(40):
        log.append(ADD, "A", np.arange(100), np.ones((100, 100)))
    assert path.stat().st_size > 40 * 100 * 100 * 4
    log.truncate(39)
    assert path.stat().st_size < 2 * 100 * 100 * 4 and numbers(log, 39) == [40]
    assert path.with_name("log-journal").stat().st_size == 0


def test_a_forked_process_is_refused(log):
    fill(log, 2)
    for call in (
        lambda: log.append(REMOVE, "A", [1]),
        lambda: numbers(log),
        lambda: log.truncate(1),
        lambda: log.digest(1),
    ):
        assert f"opened in process {os.getpid()}, and this is" in in_a_fork(call)
    assert in_a_fork(log.close) == "done"
    entries = log.since(0)
    assert "forked from it" in in_a_fork(lambda: next(entries))
    fill(log, 1)
    assert numbers(log) == [1, 2, 3]


def test_a_fork_waits_for_the_change_under_way(log, path):
    """A child that ends would take the parent's change back: SQLite rolls back what it finds."""
    forks, done = [], threading.Event()

    def append():
        while not done.is_set():
            log.append(ADD, "A", np.arange(2000), np.ones((2000, 16)))

    thread = threading.Thread(target=append)
    thread.start()
    try:
        for _ in range(20):
            forks.append(in_a_fork(lambda: log._connection.close()))
    finally:
        done.set()
        thread.join()
    assert forks == ["done"] * 20
    count = last(log)
    log.close()
    with WriteAheadLog(path) as log:
        assert numbers(log) == list(range(1, count + 1))


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"wrong is no folder; make it, or correct the path"):
        WriteAheadLog(tmp_path / "wrong" / "log")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="cannot be opened as a log"):
        WriteAheadLog(tmp_path)


def test_one_process_at_a_time(log, path):
    fill(log, 1)
    code = "import sys; from twotower.live.log import WriteAheadLog; WriteAheadLog(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 1 and "It is open in another process" in done.stderr
    fill(log, 1)
    assert numbers(log) == [1, 2]
