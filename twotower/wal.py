"""WriteAheadLog: every change of an index that was acknowledged, on disk before it is applied.

An SQLite file and no record format of its own: torn writes, fsync and recovery are settled there.
"""

import dataclasses
import pathlib
import sqlite3
import threading
from collections.abc import Iterator

import numpy as np

FORMAT_VERSION = 1
# What SQLite's file header says of the application: "2tow". Other databases are refused by it.
APPLICATION_ID = 0x32746F77
ADD, REMOVE = "add", "remove"
# Entries that `since` reads at a time, so that no writer waits for a slow reader.
BATCH = 64
COLUMNS = "sequence, op, model_version, keys, vectors, dim"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One acknowledged change.

    Attributes:
        sequence: Its place in the log, from 1.
        op: `ADD` (or replace) or `REMOVE`.
        model_version: The training that the vectors come from.
        keys: `[num_keys]` int64.
        vectors: `[num_keys, dim]` float32; `[num_keys, 0]` for a removal.
    """

    sequence: int
    op: str
    model_version: str
    keys: np.ndarray
    vectors: np.ndarray


class WriteAheadLog:
    """Numbered entries that survive `kill -9` and a power cut once `append` has returned.

    Threads may share it. It belongs to one process at a time: two that write would not apply each
    other's entries.

    Args:
        path: The file; made where it does not exist, in a folder that does.

    Raises:
        ValueError: No folder, a file that is no such log, is damaged or of another format version,
            or a log that is open already.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, WriteAheadLog(folder + "/log") as log:
    ...     first = log.append(ADD, "m1", np.array([7, 8]), np.zeros((2, 4), np.float32))
    ...     second = log.append(REMOVE, "m1", np.array([7]))
    ...     first, second, [entry.op for entry in log.since(first)]
    (1, 2, ['remove'])
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        # Absolute, so that no name means anything else to SQLite, as ":memory:" does.
        self.path = pathlib.Path(path).absolute()
        if not self.path.parent.is_dir():
            # Not made here: a log in a folder of a wrong name would be empty, and lose what the
            # right one holds.
            raise ValueError(f"{self.path.parent} is no folder; make it, or correct the path.")
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=1, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise ValueError(f"{self.path} cannot be opened as a log: {error}.") from error
        try:
            self._open()
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.Error):
                raise ValueError(
                    f"{self.path} cannot be opened as a log: {error}. Is it another file, damaged, "
                    "or open in another process?"
                ) from error
            raise

    def _open(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        # Looked at before anything is written, lest a foreign database be changed.
        application = execute("PRAGMA application_id").fetchone()[0]
        version = execute("PRAGMA user_version").fetchone()[0]
        is_new = not execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != APPLICATION_ID and (application or version or not is_new):
            raise ValueError(f"{self.path} is an SQLite file, but no log of index changes.")
        if application == APPLICATION_ID and version != FORMAT_VERSION:
            raise ValueError(
                f"{self.path}: the log has format {version}; this code reads {FORMAT_VERSION}. "
                "Read it with the twotower that wrote it, or start from a snapshot and a new log."
            )
        execute("PRAGMA journal_mode = WAL")  # one fsync an append, DELETE needs three
        execute("PRAGMA synchronous = FULL")  # NORMAL would lose the last appends in a power cut
        execute("BEGIN EXCLUSIVE")
        if application != APPLICATION_ID:
            # AUTOINCREMENT: without it, numbers would start anew after all entries are dropped.
            execute(
                "CREATE TABLE entries (sequence INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT, "
                "model_version TEXT, keys BLOB, vectors BLOB, dim INTEGER)"
            )
            execute(f"PRAGMA application_id = {APPLICATION_ID}")
            execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        execute("COMMIT")
        damage = execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise ValueError(f"{self.path} is damaged: {damage}. Start from a snapshot.")
        execute(f"SELECT {COLUMNS} FROM entries LIMIT 0")

    def append(
        self, op: str, model_version: str, keys: np.ndarray, vectors: np.ndarray | None = None
    ) -> int:
        """Writes an entry; it is on disk when this returns.

        Args:
            op: `ADD` or `REMOVE`.
            model_version: The training that the vectors come from.
            keys: `[num_keys]` integers.
            vectors: `[num_keys, dim]` floats, for `ADD` alone.

        Returns:
            The entry's sequence number, larger than all before.

        Raises:
            ValueError: An unknown op, arrays that do not fit, more than SQLite holds in one value.
            sqlite3.Error: Nothing could be written, as on a full disk.
        """
        keys = np.ascontiguousarray(keys, "<i8")
        vectors = np.empty((len(keys), 0)) if vectors is None else vectors
        vectors = np.ascontiguousarray(vectors, "<f4")
        fits = keys.ndim == 1 and vectors.ndim == 2 and len(vectors) == len(keys)
        if op not in (ADD, REMOVE) or not fits or (op == ADD) != (vectors.shape[1] > 0):
            raise ValueError(
                f"Expected {ADD!r} with keys [num_keys] and vectors [num_keys, dim], or {REMOVE!r} "
                f"with keys alone; got {op!r} with {keys.shape} and {vectors.shape}."
            )
        most = self._connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) - 1000  # the other columns
        if keys.nbytes + vectors.nbytes > most:
            raise ValueError(f"one entry holds {most} bytes; got {len(keys)} items: divide them.")
        row = (op, model_version, keys.tobytes(), vectors.tobytes(), vectors.shape[1])
        insert = f"INSERT INTO entries ({COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?)"
        with self._lock:
            return self._connection.execute(insert, row).lastrowid

    def since(self, sequence: int) -> Iterator[Entry]:
        """The entries after `sequence`, up to the last one of now, in order.

        Raises:
            ValueError: Entries after `sequence` were truncated, or the log never came that far.
        """
        truncated, last = self.truncated, self.last
        if not truncated <= sequence <= last:
            raise ValueError(
                f"entries after {sequence} were asked for; {self.path} holds those after "
                f"{truncated}, up to {last}. "
                + (
                    "The others were truncated: start from a later snapshot."
                    if sequence < truncated
                    else "The snapshot belongs to another log, or this log was lost."
                )
            )
        return self._entries(sequence, last)

    def _entries(self, sequence: int, last: int) -> Iterator[Entry]:
        while sequence < last:
            select = f"SELECT {COLUMNS} FROM entries WHERE sequence > ? ORDER BY sequence LIMIT ?"
            with self._lock:
                rows = self._connection.execute(select, (sequence, BATCH)).fetchall()
            # Numbers have no gaps: a failed append takes its number back.
            if not rows or rows[0][0] != sequence + 1:
                raise ValueError(f"{self.path}: entry {sequence + 1} was truncated while read.")
            for row in rows[: last - sequence]:
                yield self._entry(*row)
            sequence = rows[-1][0]

    def _entry(self, sequence, op, model_version, keys, vectors, dim) -> Entry:
        try:
            keys = np.frombuffer(keys, "<i8")
            vectors = np.frombuffer(vectors, "<f4").reshape(len(keys), dim)
            if op not in (ADD, REMOVE):
                raise ValueError(f"op {op!r}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: entry {sequence} is damaged ({error}).") from error
        return Entry(sequence, op, model_version, keys, vectors)

    @property
    def last(self) -> int:
        """The last sequence number given, 0 before any; also of an entry truncated since."""
        return self._number("SELECT max(seq) FROM sqlite_sequence")

    @property
    def truncated(self) -> int:
        """Entries up to this one are gone."""
        last = self.last  # read first: an append in between must not look like a gap
        return self._number("SELECT min(sequence) - 1 FROM entries", last)

    def _number(self, select: str, default: int = 0) -> int:
        with self._lock:
            number = self._connection.execute(select).fetchone()[0]
        return default if number is None else number

    def truncate(self, sequence: int) -> None:
        """Drops the entries up to `sequence`, which a saved snapshot holds.

        An index built from an older snapshot can no longer be brought up to date.

        Raises:
            ValueError: The log has not come that far.
        """
        if sequence > self.last:
            raise ValueError(f"{self.path} ends at {self.last}; got {sequence} to truncate to.")
        with self._lock:
            self._connection.execute("DELETE FROM entries WHERE sequence <= ?", (sequence,))

    def close(self) -> None:
        """Gives the file free."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "WriteAheadLog":
        return self

    def __exit__(self, *error) -> None:
        self.close()
