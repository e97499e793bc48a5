"""Damage to the files of a log is found or does no harm."""

import collections
import dataclasses
import re
import shutil
import sqlite3

import numpy as np
import pytest
from small_logs import fill, numbers, refused

from twotower.live.entries import ADD, REMOVE
from twotower.live.log import WriteAheadLog


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
        ("id_hashes = x'0100000000000000'", "id_hashes = x'0000000000000000'"),
        ("id_hashes = NULL", "id_hashes = x'0000000000000000'"),
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
        execute(
            "INSERT INTO entries SELECT NULL, op, op, keys, vectors, dim, digest, id_hashes "
            "FROM entries"
        )
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
