"""AddedVectors: vectors of items that came after an export, as an index process keeps them.

It knows no columns and has no tower, so it keeps ids and vectors, of each training apart. The query
processes keep what they were made of (`journal.py`).
"""

import pathlib
import sqlite3
import threading
from collections.abc import Collection, Mapping, Sequence

import numpy as np

TABLE = (
    "CREATE TABLE IF NOT EXISTS items (model_version TEXT, item_id TEXT, vector BLOB, "
    "PRIMARY KEY (model_version, item_id))"
)


class AddedVectors:
    """The last state of each item that was added, replaced or removed; it survives `kill -9`.

    Args:
        path: An SQLite file; made where it does not exist.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     kept = AddedVectors(folder + "/vectors.sqlite")
    ...     kept.write("v1", {"n1": np.float32([1, 2])}, ["260"])
    ...     kept.read("v1"), kept.read("v2")
    ...     kept.close()
    ({'260': None, 'n1': array([1., 2.], dtype=float32)}, {})
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self._connection = sqlite3.connect(
            path, timeout=10, isolation_level=None, check_same_thread=False
        )
        self._lock = threading.Lock()
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(TABLE)

    def write(
        self, model_version: str, added: Mapping[str, np.ndarray], removed: Sequence[str]
    ) -> None:
        """Keeps changes, all or none; they are on disk when this returns.

        Args:
            model_version: The training that the vectors are of.
            added: Id -> `[dim]` float32.
            removed: Ids.
        """
        states: dict[str, bytes | None] = {item: v.tobytes() for item, v in added.items()}
        states |= dict.fromkeys(removed)
        rows = [(model_version, item, state) for item, state in states.items()]
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", rows)

    def read(self, model_version: str) -> dict[str, np.ndarray | None]:
        """Id -> vector `[dim]` of a training, None for a removed item."""
        select = "SELECT item_id, vector FROM items WHERE model_version = ? ORDER BY item_id"
        with self._lock:
            rows = self._connection.execute(select, (model_version,)).fetchall()
        return {item: None if v is None else np.frombuffer(v, np.float32) for item, v in rows}

    def keep(self, model_versions: Collection[str]) -> None:
        """Forgets all other trainings."""
        marks = ", ".join("?" * len(model_versions))
        with self._lock:
            delete = f"DELETE FROM items WHERE model_version NOT IN ({marks})"
            self._connection.execute(delete, [*model_versions])

    def close(self) -> None:
        """Releases the file."""
        with self._lock:
            self._connection.close()
