"""The write-ahead log: entries come back, numbers never restart, strangers are refused."""

import collections
import dataclasses
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from forks import in_a_fork

from twotower.live.entries import ADD, REMOVE
from twotower.live.log import WriteAheadLog


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "log"


@pytest.fixture
def log(path):
    with WriteAheadLog(path) as log:
        yield log


def numbers(log, since=0):
    return [entry.sequence for entry in log.since(since)]


def last(log):
    return max([log.truncated, *numbers(log, log.truncated)])


def fill(log, count):
    """Entry n adds key n with the vector (n, -n)."""
    for number in range(last(log) + 1, last(log) + 1 + count):
        log.append(ADD, "A", np.array([number]), np.array([[number, -number]]))


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
    refused(path, r"the log has format 7\. This code reads format 2\. With the twotower that wrote")


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


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        ("op = 'remove'", "op = 'add'"),
        ("model_version = 'B'", "model_version = 'A'"),
        ("keys = x'0102'", "keys = x'0200000000000000'"),
        ("keys = x'0300000000000000'", "keys = x'0200000000000000'"),
        ("dim = 5", "dim = 2"),
        ("dim = 'x'", "dim = 2"),
        ("vectors = x'00004040000000C0'", "vectors = x'00000040000000C0'"),  # (3, -2), (2, -2)
        ("vectors = NULL", "vectors = x'00000040000000C0'"),
    ],
)
def test_a_damaged_entry(path, change, undo):
    with WriteAheadLog(path) as log:
        fill(log, 2)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE entries SET {change} WHERE sequence = 2")
    connection.close()
    refused(path, "its last entry does not fit")
    # In the middle it is found where it is read, and harms nobody who does not read it.
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE entries SET {undo} WHERE sequence = 2")
    connection.close()
    with WriteAheadLog(path) as log:
        fill(log, 1)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE entries SET {change} WHERE sequence = 2")
    connection.close()
    with WriteAheadLog(path) as log:
        assert numbers(log, 2) == [3]
        with pytest.raises(ValueError, match=r"entry 2 is damaged\. Put a whole copy of it back"):
            list(log.since(0))


@pytest.mark.parametrize(
    ("statement", "match"),
    [
        ("DELETE FROM entries WHERE sequence = 5", "it holds 5 rows from 0 to 4"),
        ("DELETE FROM entries WHERE sequence = 3", "it holds 5 rows from 0 to 5"),
        ("DELETE FROM entries", ""),
        ("UPDATE sqlite_sequence SET seq = 4", "the last given is .*entries', 4"),
        ("DELETE FROM sqlite_sequence", "the last given is"),
        ("UPDATE entries SET digest = NULL WHERE sequence = 5", "its last entry does not fit"),
        ("CREATE TABLE more (a)", "its tables are no log's"),
    ],
)
def test_what_is_missing_shows(path, statement, match):
    with WriteAheadLog(path) as log:
        fill(log, 5)
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    refused(path, f"is damaged: .*{match}")


def test_entries_of_another_log_do_not_fit(path, tmp_path):
    for name in ("log", "other"):
        with WriteAheadLog(tmp_path / name) as log:
            fill(log, 3)
    with sqlite3.connect(path) as connection:
        connection.execute("ATTACH ? AS other", (str(tmp_path / "other"),))
        connection.execute("REPLACE INTO entries SELECT * FROM other.entries WHERE sequence = 2")
    connection.close()
    refused(path, "its last entry does not fit")


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


# Damage.

TRUNCATED = 3


def plant(folder, state):
    """Writes a log of 26 entries of which 3 were truncated, as one of four ends leaves it; the
    entries and the digest of the snapshot."""
    rng, written = np.random.default_rng(8), folder / "written"
    written.mkdir(parents=True)
    log = WriteAheadLog(written / "log")
    for number in range(1, 27):
        size = [1, 3, 40, 400][number % 4]
        keys, vectors = rng.integers(1 << 40, size=size), rng.normal(size=(size, 6))
        log.append(REMOVE, "A", keys) if number % 5 == 0 else log.append(ADD, "A", keys, vectors)
        if number == 20:
            log.truncate(TRUNCATED)
    entries, digest = [*log.since(TRUNCATED)], log.digest(TRUNCATED)
    execute = log._connection.execute
    if state == "in a change":
        # Pages of the change are in the file before it is through, and the old ones in the journal.
        execute("PRAGMA cache_size = 2")
        execute("BEGIN")
        execute("DELETE FROM entries WHERE sequence < 10")
        execute("INSERT INTO entries SELECT NULL, op, op, keys, vectors, dim, digest FROM entries")
    if state == "closed":
        log.close()
    shutil.copytree(written, folder / "copy")
    if state == "in a change":
        assert (folder / "copy" / "log-journal").stat().st_size > 4096
        execute("ROLLBACK")
    log.close()
    return folder / "copy", entries, digest


def same(one, other):
    return all(
        np.array_equal(a, b) for a, b in zip(dataclasses.astuple(one), dataclasses.astuple(other))
    )


def outcome(folder, entries, digest):
    """What a start from the snapshot makes of a log: `harmless`, `named`, `refused` or `silent`.

    Harmless is that all entries are there, and still are after another one and a restart.
    """
    path = folder / "log"
    try:
        with WriteAheadLog(path) as log:
            read = [*log.since(TRUNCATED, digest)]
            if len(read) != len(entries) or not all(map(same, read, entries)):
                return "silent"
            log.append(ADD, "A", [7], [[1, 2, 3, 4, 5, 6]])
        with WriteAheadLog(path) as log:
            read = [*log.since(TRUNCATED, digest)]
            whole = len(read) == len(entries) + 1 and all(map(same, read, entries))
            return "harmless" if whole and read[-1].keys.tolist() == [7] else "silent"
    except ValueError as error:
        return "named" if re.search(r"\bentry \d+|no entry|after 3 were", str(error)) else "refused"
    except sqlite3.Error:
        return "refused"  # at the append, which is not acknowledged


def damaged(rng, folder, kind):
    """One damage to one of the files."""
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    path = files[rng.integers(len(files))]
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    elif kind == "page":  # where tables, counts and headers are, and not the vectors
        content[4096 * rng.integers(len(content) // 4096) + rng.integers(100)] ^= 1 << rng.integers(
            8
        )
    elif kind == "cut":
        del content[rng.integers(len(content)) :]
    elif kind == "empty":
        content.clear()
    if kind == "lack":
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{kind} of {path.name}"


STATES = ["closed", "killed", "in a change"]
KINDS = ["flip", "flip", "flip", "flip", "page", "page", "cut", "cut", "lack", "empty"]


def damages(tmp_path, rounds):
    """How often which damage had which outcome."""
    counts = collections.Counter()
    for state in STATES:
        copy, entries, digest = plant(tmp_path / state.replace(" ", "_"), state)
        whole = tmp_path / "whole"
        shutil.copytree(copy, whole)
        assert outcome(whole, entries, digest) == "harmless"
        shutil.rmtree(whole)
        rng = np.random.default_rng(len(state))
        for number in range(rounds):
            folder = tmp_path / f"{state}-{number}"
            shutil.copytree(copy, folder)
            done = damaged(rng, folder, KINDS[number % len(KINDS)])
            found = outcome(folder, entries, digest)
            assert found != "silent", (state, number, done)
            counts[f"{done}, {state}", found] += 1
            shutil.rmtree(folder)
    return counts


def test_damage_is_found_or_harmless(tmp_path):
    counts = damages(tmp_path, 20)
    # Some does no harm, as in what is empty of a page, and some is found: the test sees both.
    assert {found for _, found in counts} >= {"harmless", "named"}


@pytest.mark.slow
def test_a_thousand_damages_are_found_or_harmless(tmp_path):
    counts = damages(tmp_path, 400)
    for (done, found), count in sorted(counts.items()):
        print(f"{done}: {count} {found}")
    by_outcome = collections.Counter()
    for (_, found), count in counts.items():
        by_outcome[found] += count
    print(dict(by_outcome))
