"""Journal: which items were added and removed while bundles serve.

A change is on disk before an answer knows of it. The journal holds ids and columns of items, where
the log of one index (`live/log.py`) holds keys and vectors: a deploy brings a catalogue with other
keys and a tower with other vectors, and several indexes and processes follow the same changes.
SQLite handles torn writes, fsync and several processes.
"""

import dataclasses
import functools
import json
import pathlib
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

ADD, REMOVE = "add", "remove"
TABLE = (
    "CREATE TABLE IF NOT EXISTS changes "
    "(sequence INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT, item_id TEXT, item TEXT)"
)


@dataclasses.dataclass(frozen=True)
class Change:
    """An item that was added or removed.

    Attributes:
        sequence: Its number in the journal, from 1.
        op: `ADD` (or replace) or `REMOVE`.
        item_id: The item.
        item: Its columns, `item_id` among them; empty for a removal.

    >>> Change(3, REMOVE, "260").item
    {}
    """

    sequence: int
    op: str
    item_id: str
    item: dict[str, Any] = dataclasses.field(default_factory=dict)


class Journal:
    """Numbered changes that survive `kill -9` once `append` has returned.

    Threads and processes may share the file.

    Args:
        path: The file; made where it does not exist.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = Journal(folder + "/items.sqlite")
    ...     journal.append([{"item_id": "n1", "title": "Up"}], ["260"])
    ...     [(change.sequence, change.op) for change in journal.since(0)]
    ...     journal.close()
    2
    [(1, 'add'), (2, 'remove')]
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self._connection = sqlite3.connect(
            path, timeout=10, isolation_level=None, check_same_thread=False
        )
        self._lock = threading.Lock()
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(TABLE)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS bundles (model_version TEXT PRIMARY KEY, sequence INTEGER)"
        )
        self._connection.execute("CREATE TABLE IF NOT EXISTS identity (id TEXT)")

    @functools.cached_property
    def id(self) -> str:
        """A random id of this journal.

        A new journal in the place of a lost one has another id, since it counts from 1 again.
        """
        with self._lock, self._connection:
            execute = self._connection.execute
            execute("BEGIN IMMEDIATE")
            execute(
                "INSERT INTO identity SELECT lower(hex(randomblob(8))) "
                "WHERE NOT EXISTS (SELECT 1 FROM identity)"
            )
            return execute("SELECT id FROM identity").fetchone()[0]

    def append(self, added: Sequence[dict[str, Any]], removed: Sequence[str]) -> int:
        """Writes changes, all or none; they are on disk when this returns.

        Args:
            added: Columns of each item, `item_id` among them.
            removed: Ids of items.

        Returns:
            The number of the last one.

        Raises:
            sqlite3.Error: Nothing could be written, as on a full disk.
        """
        rows = [(ADD, item["item_id"], json.dumps(item)) for item in added]
        rows += [(REMOVE, item_id, "{}") for item_id in removed]
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            insert = "INSERT INTO changes (op, item_id, item) VALUES (?, ?, ?)"
            for row in rows:
                self._connection.execute(insert, row)
            return self._last()

    def since(self, sequence: int) -> list[Change]:
        """The changes after `sequence`, in order."""
        select = (
            "SELECT sequence, op, item_id, item FROM changes WHERE sequence > ? ORDER BY sequence"
        )
        with self._lock:
            rows = self._connection.execute(select, (sequence,)).fetchall()
        return [Change(number, op, item_id, json.loads(item)) for number, op, item_id, item in rows]

    def exported(self, model_version: str) -> int:
        """The number of the last change before a bundle was first opened with this journal.

        Args:
            model_version: Of the bundle.
        """
        with self._lock, self._connection:
            execute = self._connection.execute
            execute("BEGIN IMMEDIATE")
            row = (model_version, self._last())
            execute("INSERT OR IGNORE INTO bundles VALUES (?, ?)", row)
            select = "SELECT sequence FROM bundles WHERE model_version = ?"
            return execute(select, row[:1]).fetchone()[0]

    @property
    def last(self) -> int:
        """The number of the last change, 0 before any."""
        with self._lock:
            return self._last()

    def _last(self) -> int:
        return self._connection.execute("SELECT max(sequence) FROM changes").fetchone()[0] or 0

    def close(self) -> None:
        """Releases the file."""
        with self._lock:
            self._connection.close()
