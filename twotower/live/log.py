"""WriteAheadLog: every change of an index that was acknowledged, on disk before it is applied.

The log is one SQLite file, so SQLite handles torn writes, fsync and recovery. Digests check
what SQLite does not. The digest of an entry includes that of the entry before it. So an entry that
was changed, is missing or is of another log does not fit its neighbours.
"""

import contextlib
import os
import pathlib
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Iterator

import numpy as np

from twotower.limits import whole_number
from twotower.live.entries import ADD, REMOVE, Entry, entry_digest
from twotower.storage import paths
from twotower.storage.holding import held
from twotower.storage.syncing import sync

FORMAT_VERSION = 3
# What SQLite's file header says of the application: "2tow". Other databases are refused by it.
APPLICATION_ID = 0x32746F77
# AUTOINCREMENT: SQLite keeps the last number apart, which shows what is missing at the end.
TABLE = (
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT, model_version "
    "TEXT, keys BLOB, vectors BLOB, dim INTEGER, digest BLOB, id_hashes BLOB)"
)
# What turns a log of format 2 into one of format 3. Its entries have no hashes of ids.
FROM_FORMAT_2 = "ALTER TABLE entries ADD COLUMN id_hashes BLOB"
SCHEMA = {(TABLE,), ("CREATE TABLE sqlite_sequence(name,seq)",)}
# What stays of the last truncated entry: its number and digest, from which the next one goes on.
BARE = "op = '', model_version = '', keys = x'', vectors = x'', dim = 0, id_hashes = x''"
COLUMNS = ("op", "model_version", "keys", "vectors", "id_hashes")
# As blobs, so that a flipped bit in a value's type (text or blob) does not matter.
CONTENT = ", ".join(f"CAST({name} AS BLOB)" for name in COLUMNS)
# Endings of the files that SQLite writes beside a database, by journal mode.
SIDES = ("-journal", "-wal", "-shm")
IS_OPEN = "It is open in another process, or in this one; close it there."
START_ANEW = (
    "Put a whole copy of it back; or go on without what came after the last snapshot: delete it "
    'and start from dataclasses.replace(pair, sequence=0, digest="").'
)

OTHER_FORMAT = (
    f"This code reads format {FORMAT_VERSION}. With the twotower that wrote it, start a LiveIndex "
    "and take a snapshot; then start here from that and a new log, with "
    'dataclasses.replace(pair, sequence=0, digest="").'
)


class WriteAheadLog:
    """Numbered entries that survive `kill -9` and a power cut once `append` has returned.

    Threads may share it. It belongs to one process at a time: two that write would not apply each
    other's entries. A process forked from it has to open another log. An empty hidden file beside
    the log, `.NAME.lock`, is there and locked as long as it is open.

    The log does not know which entries an index holds, since the index may lack the last one;
    `LiveIndex.items` and `LiveIndex.sequence` do.

    Args:
        path: The file; made where it does not exist, in a folder that does.

    Raises:
        ValueError: No folder; a file that is no such log, is damaged or of another format version;
            a missing log whose journal is still there; or a log that is open already.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, WriteAheadLog(folder + "/log") as log:
    ...     first = log.append(ADD, "m1", np.array([7, 8]), np.zeros((2, 4), np.float32))
    ...     second = log.append(REMOVE, "m1", np.array([7]))
    ...     first, second, [entry.op for entry in log.since(first)]
    (1, 2, ['remove'])
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        # Absolute, so that no name is special to SQLite, as ":memory:" is. Without links, since
        # SQLite puts its journal beside the file itself.
        self.path = paths.local(path).resolve()
        self._process, self._lock = os.getpid(), threading.Lock()
        if not self.path.parent.is_dir():
            # Not made here: a log in a folder of a wrong name would be empty, and lose what the
            # right one holds.
            raise ValueError(f"{self.path.parent} is no folder; make it, or correct the path.")
        if self.path.is_dir():
            raise ValueError(f"{self.path} cannot be opened as a log: it is a folder.")
        # SQLite's own lock ends as soon as anything in this process opens the log's file and closes
        # it, such as `shutil.copy`: POSIX ends all locks of the process with it.
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            self._release = weakref.finalize(self, held(lock))
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} cannot be opened as a log: {lock} is locked. {IS_OPEN}"
            ) from error
        _LOGS.add(self)
        try:
            self._connect()
        except BaseException:
            self._release()
            raise

    def _connect(self) -> None:
        if not self.path.exists():
            _make(self.path)
        elif self.path.is_file() and not self.path.stat().st_size:
            raise ValueError(f"{self.path} is empty, and no log ever is. {START_ANEW}")
        if pathlib.Path(f"{self.path}-wal").exists():
            raise ValueError(
                f"{self.path}-wal is no part of this log: it belongs to another database, or to a "
                f"log of format 1. {OTHER_FORMAT}"
            )
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
                busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                raise ValueError(
                    f"{self.path} cannot be opened as a log: {error}. "
                    + (
                        IS_OPEN
                        if busy
                        else f"It is another file, or no entry of it can be read. {START_ANEW}"
                    )
                ) from error
            raise

    def _open(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        # Checked before anything is written, so that a database of another program is not changed.
        application = execute("PRAGMA application_id").fetchone()[0]
        version = execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise ValueError(f"{self.path} is an SQLite file, but no log of index changes.")
        if version not in (2, FORMAT_VERSION):
            raise ValueError(f"{self.path}: the log has format {version}. {OTHER_FORMAT}")
        # Not WAL, which keeps acknowledged entries in a second file, where a flipped bit loses them
        # and which a copy may lack. This journal is empty except in the middle of a change.
        execute("PRAGMA journal_mode = TRUNCATE")
        execute("PRAGMA synchronous = FULL")  # less would lose the last entries in a power cut
        execute("BEGIN EXCLUSIVE")  # the lock is kept
        if version == 2:
            execute(FROM_FORMAT_2)
            execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        execute("COMMIT")
        self._file = self.path.stat()
        damage = self._damage()
        if damage:
            raise ValueError(f"{self.path} is damaged: {damage}. {START_ANEW}")

    def _damage(self) -> str:
        """What is wrong with the file as a whole, "" where nothing is."""
        execute = self._connection.execute
        try:
            found = execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                return found
            if {*execute("SELECT sql FROM sqlite_master")} != SCHEMA:
                return "its tables are no log's"
            first, last, num = execute(
                "SELECT min(sequence), max(sequence), count(*) FROM entries"
            ).fetchone()
            given = execute("SELECT name, seq FROM sqlite_sequence").fetchall()
            if given != [("entries", last)] or num != last - first + 1:
                return f"it holds {num} rows from {first} to {last}, and the last given is {given}"
        except (sqlite3.Error, TypeError) as error:
            return str(error)
        try:
            # The next entry goes on from the last one's digest.
            self.digest(last) if last == first else [*self.since(last - 1)]
        except ValueError:
            return "its last entry does not fit"
        return ""

    def append(
        self,
        op: str,
        model_version: str,
        keys: np.ndarray,
        vectors: np.ndarray | None = None,
        id_hashes: np.ndarray | None = None,
    ) -> int:
        """Writes an entry; it is on disk when this returns.

        Args:
            op: `ADD` or `REMOVE`.
            model_version: The training that the vectors come from.
            keys: `[num_keys]` integers.
            vectors: `[num_keys, dim]` floats, for `ADD` alone.
            id_hashes: `[num_keys]` uint64 from `Pair.hashes_of`; None for ids that are not known.

        Returns:
            The entry's sequence number, larger than all before.

        Raises:
            ValueError: An unknown op, arrays that do not fit, more than SQLite holds in one value,
                another process than the one that opened the log, or another file at its path.
            sqlite3.Error: Nothing could be written, as on a full disk.
        """
        self.check_process()
        self._require_in_place()
        keys = np.ascontiguousarray(keys, "<i8")
        vectors = np.empty((len(keys), 0)) if vectors is None else vectors
        vectors = np.ascontiguousarray(vectors, "<f4")
        hashes = np.zeros(keys.shape) if id_hashes is None else id_hashes
        hashes = np.ascontiguousarray(hashes, "<u8")
        fits = keys.ndim == 1 and vectors.ndim == 2 and len(vectors) == len(keys)
        fits = fits and hashes.shape == keys.shape
        if op not in (ADD, REMOVE) or not fits or (op == ADD) != (vectors.shape[1] > 0):
            raise ValueError(
                f"Expected {ADD!r} with keys [num_keys] and vectors [num_keys, dim], or {REMOVE!r} "
                f"with keys alone, and a hash for each key; got {op!r} with {keys.shape}, "
                f"{vectors.shape} and {hashes.shape}."
            )
        most = self._connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) - 1000  # the other columns
        if keys.nbytes + vectors.nbytes + hashes.nbytes > most:
            raise ValueError(f"one entry holds {most} bytes; got {len(keys)} items: divide them.")
        arrays = keys.tobytes(), vectors.tobytes(), hashes.tobytes()
        with self._lock:
            # Read each time: an append that failed may have been written all the same.
            last, digest = self._connection.execute(
                "SELECT sequence, CAST(digest AS BLOB) FROM entries ORDER BY sequence DESC LIMIT 1"
            ).fetchone()
            dim, texts = vectors.shape[1], (op.encode(), model_version.encode())
            digest = entry_digest(digest, last + 1, dim, *texts, *arrays)
            row = (last + 1, op, model_version, *arrays[:2], dim, digest, arrays[2])
            self._connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        return last + 1

    def since(self, sequence: int, digest: str = "") -> Iterator[Entry]:
        """The entries after `sequence`, up to the last one at the time of the call, in order.

        The iterator raises ValueError at an entry that was damaged, or truncated meanwhile.

        Args:
            sequence: Number of the last entry that the caller has already.
            digest: What `digest` gave for that entry; not compared where "".

        Raises:
            ValueError: Entries after `sequence` were truncated, the log ends before it, or has
                another entry of that number.
        """
        sequence, truncated, last = whole_number(sequence, "sequence"), self.truncated, self._last
        if sequence < truncated:
            raise ValueError(
                f"entries after {sequence} are not in the log; {self.path} holds those after "
                f"{truncated}, up to {last}. The others were truncated: start from a later "
                "snapshot."
            )
        found = self.digest(sequence) if sequence <= last else "none"
        if sequence > last or digest not in ("", found):
            raise ValueError(
                f"entries after {sequence} are not in the log; {self.path} ends at {last}, or has "
                f"another entry {sequence} than the snapshot. The snapshot belongs to another log, "
                f"or this log was lost or damaged. {START_ANEW}"
            )
        return self._entries(sequence, last, found)

    def _entries(self, sequence: int, last: int, digest: str) -> Iterator[Entry]:
        # One at a time, so that no writer waits for a slow reader, and memory holds one entry.
        for number in range(sequence + 1, last + 1):
            *content, found = self._row(f"dim, {CONTENT}, digest", number)
            entry = None
            with contextlib.suppress(TypeError, ValueError):
                if found == entry_digest(bytes.fromhex(digest), number, *content):
                    dim, op, model_version, keys, vectors, hashes = content
                    keys = np.frombuffer(keys, "<i8")
                    vectors = np.frombuffer(vectors, "<f4").reshape(len(keys), dim)
                    hashes = np.frombuffer(hashes or bytes(8 * len(keys)), "<u8")
                    entry = Entry(
                        number, op.decode(), model_version.decode(), keys, vectors, hashes
                    )
            if entry is None:
                raise ValueError(f"{self.path}: entry {number} is damaged. {START_ANEW}")
            digest = found.hex()
            yield entry

    def _row(self, columns: str, number: int) -> tuple:
        """Columns of an entry, or of what stays of the last truncated one."""
        self.check_process()
        number = whole_number(number, "sequence")
        try:
            with self._lock:
                select = f"SELECT {columns} FROM entries WHERE sequence = ?"
                row = self._connection.execute(select, (number,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: entry {number} is damaged ({error}).") from error
        if row is None:
            gone = "was truncated while read" if number <= self.truncated else "is missing"
            raise ValueError(f"{self.path}: entry {number} {gone}.")
        return row

    def digest(self, sequence: int) -> str:
        """Identifies the log up to an entry, for `since`.

        Raises:
            ValueError: No such entry; the last truncated one still has its digest.
        """
        return (self._row("CAST(digest AS BLOB)", sequence)[0] or b"").hex()

    @property
    def _last(self) -> int:
        """The last sequence number given, 0 before any; also of an entry truncated since."""
        return self._number("SELECT seq FROM sqlite_sequence")

    @property
    def truncated(self) -> int:
        """Entries up to this one are gone."""
        return self._number("SELECT min(sequence) FROM entries")

    def _number(self, select: str) -> int:
        self.check_process()
        with self._lock:
            return self._connection.execute(select).fetchone()[0]

    def truncate(self, sequence: int) -> None:
        """Drops the entries up to `sequence`, which a saved snapshot holds; the file shrinks.

        An index built from an older snapshot can no longer be brought up to date.

        Raises:
            ValueError: The log has not come that far, or another file is at its path.
        """
        sequence = whole_number(sequence, "sequence")
        self._require_in_place()
        if sequence > self._last:
            raise ValueError(f"{self.path} ends at {self._last}; got {sequence} to truncate to.")
        execute = self._connection.execute
        with self._lock, self._connection:  # commits, or rolls back
            execute("BEGIN")
            execute("DELETE FROM entries WHERE sequence < ?", (sequence,))
            execute(f"UPDATE entries SET {BARE} WHERE sequence = ?", (sequence,))

    def check_process(self) -> None:
        """Raises ValueError in a process forked from the one that opened the log, since both would
        give the same sequence numbers."""
        if os.getpid() != self._process:
            raise ValueError(
                f"{self.path} was opened in process {self._process}, and this is {os.getpid()}, "
                "forked from it. Change the index in the process that opened its log."
            )

    def _require_in_place(self) -> None:
        """Raises ValueError if another file, or none, stands at the log's path.

        As after a restored backup: entries would go into a file that no restart finds.
        """
        try:
            is_same = os.path.samestat(self.path.stat(), self._file)
        except OSError:
            is_same = False
        if not is_same:
            raise ValueError(
                f"{self.path} was replaced or moved while this log was open, so nothing more is "
                "written. Put the old file back, or close this log and open the new one."
            )

    def close(self) -> None:
        """Releases the file."""
        # Not in a forked process, where SQLite would roll back the change that the process which
        # opened the log has under way.
        if os.getpid() == self._process:
            with self._lock:
                self._connection.close()
            self._release()

    def __enter__(self) -> "WriteAheadLog":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _make(path: pathlib.Path) -> None:
    """Makes an empty log in one step, so that no half of one is ever at `path`."""
    left = [side for side in SIDES if pathlib.Path(f"{path}{side}").exists()]
    if left:
        raise ValueError(f"{path} is gone, and {path.name}{left[0]} is left of it. {START_ANEW}")
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with contextlib.closing(sqlite3.connect(new)) as connection:
            # So that each truncation shrinks the file; must be set before there is a table.
            connection.execute("PRAGMA auto_vacuum = FULL")
            connection.execute(TABLE)
            # Entry 0 is like a truncated one; its random digest identifies this log.
            connection.execute(
                "INSERT INTO entries VALUES (0, '', '', x'', x'', 0, randomblob(32), x'')"
            )
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            connection.commit()
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.link(new, path)
        sync(path.parent)
    except (sqlite3.Error, OSError) as error:
        raise ValueError(f"{path} cannot be opened as a log: {error}.") from error
    finally:
        new.unlink(missing_ok=True)


# A fork waits for changes under way: else the child, when it ends, would roll back half of one.
_LOGS: "weakref.WeakSet[WriteAheadLog]" = weakref.WeakSet()
_HELD: list[threading.Lock] = []


def _before_fork() -> None:
    for log in list(_LOGS):
        log._lock.acquire()
        _HELD.append(log._lock)


def _after_fork() -> None:
    while _HELD:
        _HELD.pop().release()


def _after_fork_in_child() -> None:
    _after_fork()
    for log in list(_LOGS):
        log._release()  # else the lock would last until this process ends, too


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)
