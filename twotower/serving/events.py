"""EventLog: what users did, on disk when it is acknowledged, then Parquet that training reads.

    python experiments/train.py --interactions=W/state/events --items=W/state/items.parquet ...

A training takes the events for what they are (`Dataset.positive`). Clicks and watches are
positives. So is a like or share of an item that the user has not clicked, watched, liked or shared
before, such as a like of a title on the page. Impressions and skips are not positives.

Events go to a SQLite file first, since a Parquet file cannot grow. From time to time all of them
move into a part file, whose name holds the numbers of its events. A process that is killed during
the move may leave events in both. The next start knows them by their numbers and removes them from
the SQLite file, so each event is there once.
"""

import logging
import os
import pathlib
import re
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from twotower.storage.syncing import sync

LOG = logging.getLogger("twotower.serving")
# The columns of `Dataset.interactions`.
COLUMNS = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "timestamp": pa.int64(),
    "event": pa.string(),
    "rating": pa.float32(),
    "value": pa.float32(),
    "search_text": pa.string(),
    "device": pa.string(),
    "country": pa.string(),
}
SCHEMA = pa.schema([*COLUMNS.items()])
SPOOL = "spool.sqlite"
PART = re.compile(r"part-(\d{12})-(\d{12})\.parquet")


class EventLog:
    """Events on disk.

        log = EventLog("W/state/events")
        log.append([{"user_id": "42", "item_id": "260", "timestamp": 978300760, "event": "watch"}])
        log.flush()

    Args:
        folder: Of the part files; made where it does not exist. The SQLite file stands beside it.
        rows: Number of events after which `flush_full` writes a part file.
    """

    def __init__(self, folder: str | pathlib.Path, rows: int = 100_000) -> None:
        self.folder, self._rows = pathlib.Path(folder), rows
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            self.folder.with_name(f"{self.folder.name}.{SPOOL}"),
            timeout=10,
            isolation_level=None,
            check_same_thread=False,
        )
        execute = self._connection.execute
        execute("PRAGMA synchronous = FULL")
        names = ", ".join(COLUMNS)
        execute(
            f"CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY AUTOINCREMENT, {names})"
        )
        with self._connection:
            execute("BEGIN IMMEDIATE")
            flushed = self._flushed()
            execute("DELETE FROM events WHERE number <= ?", (flushed,))
            # A new file beside old part files would count from 1, and its events would be taken for
            # those of the part files.
            select = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'"
            if execute(select).fetchone()[0] < flushed:
                execute("DELETE FROM sqlite_sequence WHERE name = 'events'")
                execute("INSERT INTO sqlite_sequence VALUES ('events', ?)", (flushed,))

    def _flushed(self) -> int:
        """The number of the last event in a part file, 0 for none."""
        names = (PART.fullmatch(path.name) for path in self.folder.iterdir())
        return max((int(name[2]) for name in names if name), default=0)

    def append(self, events: Sequence[dict[str, Any]]) -> range:
        """Writes events, all or none; they are on disk when this returns.

        Args:
            events: A dictionary for each event, from names of `COLUMNS` to values. A column that is
                left out is missing.

        Returns:
            Their numbers.

        Raises:
            sqlite3.Error: Nothing could be written, as on a full disk.
        """
        marks = ", ".join("?" * len(COLUMNS))
        insert = f"INSERT INTO events ({', '.join(COLUMNS)}) VALUES ({marks})"
        rows = [[event.get(name) for name in COLUMNS] for event in events]
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(insert, rows)
            # No other process writes meanwhile, so the numbers of these events have no gaps.
            (last,) = self._connection.execute("SELECT last_insert_rowid()").fetchone()
        return range(last - len(rows) + 1, last + 1)

    def remove(self, numbers: range) -> None:
        """Takes events out again, all or none.

        Events that another thread or process has moved into a part file meanwhile stay there.

        Args:
            numbers: What `append` returned.

        Raises:
            sqlite3.Error: Nothing could be removed, as on a full disk.
        """
        delete = "DELETE FROM events WHERE number BETWEEN ? AND ?"
        with self._lock:
            self._connection.execute(delete, (numbers.start, numbers.stop - 1))

    @property
    def waiting(self) -> int:
        """Number of events that are in no part file yet."""
        return self._connection.execute("SELECT count(*) FROM events").fetchone()[0]

    def flush_full(self) -> None:
        """Moves the events into a part file if there are `rows` or more.

        An error is only logged. The events are on disk already, and a caller who got the error
        would send them again.
        """
        with self._lock:
            try:
                if self.waiting >= self._rows:
                    self._flush()
            except (OSError, sqlite3.Error, pa.ArrowException) as error:
                LOG.error("events wait for a part file: %s", error)

    def flush(self) -> pathlib.Path | None:
        """Moves the events into a part file; returns it, or None where there are none."""
        with self._lock:
            return self._flush()

    def _flush(self) -> pathlib.Path | None:
        execute = self._connection.execute
        with self._connection:
            execute("BEGIN IMMEDIATE")  # another process would write the same events
            execute("DELETE FROM events WHERE number <= ?", (self._flushed(),))
            names = ", ".join(("number", *COLUMNS))
            rows = execute(f"SELECT {names} FROM events ORDER BY number").fetchall()
            if not rows:
                return None
            numbers, *columns = zip(*rows)
            arrays = [pa.array(c, kind) for c, kind in zip(columns, COLUMNS.values())]
            path = self.folder / f"part-{numbers[0]:012d}-{numbers[-1]:012d}.parquet"
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                parquet.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), temporary)
                sync(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            sync(self.folder)
            execute("DELETE FROM events WHERE number <= ?", (numbers[-1],))
            return path

    def close(self) -> None:
        """Writes the last part file and releases the files.

        Raises:
            OSError: The disk is full. The events stay in the log, and the next start writes them.
        """
        try:
            self.flush()
        finally:
            with self._lock:
                self._connection.close()
