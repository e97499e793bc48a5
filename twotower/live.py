"""A query tower and its index behind one reference: searched, changed and exchanged at run time.

The two are read together, so no query meets an index of another training. A change is in the
write-ahead log before it is in the index, so what was acknowledged survives the process.
"""

import dataclasses
import json
import os
import pathlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from twotower.pair import FORMAT_VERSION, Checks, Pair, failed_checks
from twotower.ragged import Ragged
from twotower.retrieval import build
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import Candidates
from twotower.retrieval.vectors import KeyedVectors, checked_keys
from twotower.wal import ADD, REMOVE, WriteAheadLog

# Replays before a swap takes the writers' lock: each leaves what was added during it.
ROUNDS = 3

# Keys [n] -> vectors [n, dim] of the new pair's item tower.
Embed = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a search found, and the training of the pair that found it."""

    candidates: Candidates
    model_version: str


class SwapRefused(ValueError):
    """A pair that does not go live; `failed` has a line for each reason."""

    def __init__(self, failed: Sequence[str]) -> None:
        super().__init__("the pair is not exchanged, the old one stays: " + "; ".join(failed))
        self.failed = list(failed)


class LiveIndex:
    """Searches, changes and exchanges a pair, all at the same time.

    Searches take no lock: one under way ends with the pair that it began with. Changes and swaps
    wait for one another. An index that `needs_rebuild` is built anew beside this one, over
    `retriever.live()`, and swapped in.

    Args:
        pair: The first to answer; the log's entries after `pair.sequence` are replayed into it.
        log: Of this index alone.
        checks: What `swap` asks of a pair.
        embed: As in `swap`, where the log holds vectors of another training.

    Raises:
        ValueError: A pair of two trainings, or a log that cannot be replayed into it.
    """

    def __init__(
        self,
        pair: Pair,
        log: WriteAheadLog,
        checks: Checks | None = None,
        embed: Embed | None = None,
    ) -> None:
        if pair.tower_version != pair.index_version:
            raise ValueError(
                f"Expected tower and index of one training; got {pair.tower_version!r} and "
                f"{pair.index_version!r}."
            )
        self.checks, self._log = checks, log
        self._writing, self._swapping = threading.Lock(), threading.Lock()
        # Last log entry applied to each retriever that is still in use: a pair swapped back in
        # goes on from there.
        self._applied: weakref.WeakKeyDictionary[Retriever, int] = weakref.WeakKeyDictionary()
        self._replay(pair, embed)
        self._pair = pair

    @property
    def pair(self) -> Pair:
        """The live pair. Two reads may give two: keep the first."""
        return self._pair

    @property
    def sequence(self) -> int:
        """Last log entry that the live index holds."""
        return self._applied[self._pair.retriever]

    def search(
        self,
        inputs: Mapping[str, np.ndarray],
        k: int,
        exclude: Ragged | None = None,
        allow: np.ndarray | None = None,
    ) -> Answer:
        """The best `k` items of each request.

        Args:
            inputs: Raw inputs of the query tower, by name, with a batch dimension.
            k: As in `Retriever.search`, like `exclude` and `allow`.

        Raises:
            ValueError: As in `Retriever.search`.
        """
        pair = self._pair  # read once: a swap may come at any moment
        queries = pair.query_tower(inputs)  # [batch_size, dim]
        found = pair.retriever.search(queries, k, exclude, allow)
        return Answer(found, pair.model_version)

    def add(self, keys: np.ndarray, vectors: np.ndarray, model_version: str) -> int:
        """Adds items or replaces their vectors; the next search finds them.

        Args:
            keys: `[num_items]` integers.
            vectors: `[num_items, dim]` floats of the live training's item tower.
            model_version: The training that they come from.

        Returns:
            The log entry's number. From here on the change survives the process.

        Raises:
            ValueError: As in `Retriever.add`, or vectors of another training; nothing is logged.
            sqlite3.Error: The log cannot be written; nothing is changed.
        """
        with self._writing:
            pair = self._pair
            if model_version != pair.model_version:
                raise ValueError(
                    f"vectors of training {model_version!r} do not fit the live one, "
                    f"{pair.model_version!r}. Embed the items with its item tower."
                )
            retriever = pair.retriever
            checked = KeyedVectors.checked(keys, vectors, retriever.metric, retriever.dim)
            # Not `checked.vectors`: scaled twice, under cosine, they would not be what was given.
            return self._write(ADD, checked.keys, np.asarray(vectors, np.float32))

    def remove(self, keys: np.ndarray) -> int:
        """Removes items; the next search does not find them.

        Returns:
            The log entry's number, as in `add`.

        Raises:
            ValueError: A key that is not in the index; nothing is logged.
            sqlite3.Error: The log cannot be written; nothing is changed.
        """
        with self._writing:
            self._replay(self._pair)  # what an earlier call logged and failed to apply is known
            keys = checked_keys(keys, "keys")
            self._pair.retriever.require_known(keys)
            return self._write(REMOVE, keys)

    def _write(self, op: str, keys: np.ndarray, vectors: np.ndarray | None = None) -> int:
        sequence = self._log.append(op, self._pair.model_version, keys, vectors)
        # Applied as after a crash, from the log: so an entry whose application failed (out of
        # memory) comes with the next one, and never out of order.
        self._replay(self._pair)
        return sequence

    def _replay(self, pair: Pair, embed: Embed | None = None) -> None:
        """Applies to the pair's index what the log has and it has not; the last word a key."""
        sequence = max(pair.sequence, self._applied.get(pair.retriever, 0))
        latest = {}  # key -> (entry, row)
        for entry in self._log.since(sequence):
            latest |= {key: (entry, row) for row, key in enumerate(entry.keys.tolist())}
            sequence = entry.sequence
        gone, own, foreign, versions = [], {}, [], set()
        for key, (entry, row) in latest.items():
            if entry.op == REMOVE:
                gone.append(key)
            elif entry.model_version == pair.model_version:
                own[key] = entry.vectors[row]
            else:
                foreign.append(key)
                versions.add(entry.model_version)
        if foreign:
            if embed is None:
                raise ValueError(
                    f"{len(foreign)} items were added with vectors of training {sorted(versions)}, "
                    f"not of {pair.model_version!r}: pass embed, which gives its item tower's"
                )
            pair.retriever.add(np.array(foreign), embed(np.array(foreign)))
        if own:
            pair.retriever.add(np.array(list(own)), np.stack(list(own.values())))
        if gone:
            # Those that the index has: it may have been built after an item went.
            gone = np.array(gone)
            pair.retriever.remove(gone[pair.retriever.knows(gone)])
        self._applied[pair.retriever] = sequence

    def swap(self, pair: Pair, embed: Embed | None = None, checks: Checks | None = None) -> Pair:
        """Makes another pair the live one, in one step, with all that was acknowledged.

        Args:
            pair: Built from an older snapshot, or one that was live before. Its index takes the
                log's entries after `pair.sequence`, most of them while writers go on.
            embed: Keys `[n]` -> vectors `[n, dim]` of the pair's item tower, for items that were
                added with vectors of another training.
            checks: In place of the index's own, for this swap.

        Returns:
            The pair that was live; it still answers the searches that hold it.

        Raises:
            SwapRefused: A check failed, or the log cannot be replayed; the old pair stays.
            ValueError: No checks.
        """
        checks = checks or self.checks
        if checks is None:
            raise ValueError("a swap needs Checks: give them to LiveIndex, or to this call.")
        with self._swapping:
            failed = failed_checks(pair, checks, len(self._pair.retriever))
            if failed:
                raise SwapRefused(failed)
            try:
                # An index that is live already is changed under the writers' lock alone.
                if pair.retriever is not self._pair.retriever:
                    for _ in range(ROUNDS):
                        self._replay(pair, embed)
                with self._writing:
                    self._replay(pair, embed)
                    old, self._pair = self._pair, pair
            except ValueError as error:
                raise SwapRefused([f"replay: {error}"]) from error
        return old

    def snapshot(self, directory: str | pathlib.Path) -> int:
        """Saves the live index with its place in the log; writers wait, searches do not.

        Restart: `LiveIndex(Pair.from_snapshot(directory, bundle), log)`.

        Returns:
            The last entry in it. Then `log.truncate` of it frees the log, unless a pair built from
            an older snapshot is still to come.
        """
        directory = pathlib.Path(directory).absolute()
        with self._writing, build.replacing(directory) as folder:
            pair, sequence = self._pair, self.sequence
            build.save(pair.retriever, folder / "index", pair.index_version)
            described = {"format_version": FORMAT_VERSION, "sequence": sequence}
            (folder / "live.json").write_text(json.dumps(described) + "\n")
            # Before the log may be truncated, against a power cut.
            for path in [folder, *folder.rglob("*")]:
                _sync(path)
        _sync(directory.parent)
        return sequence


def _sync(path: pathlib.Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
