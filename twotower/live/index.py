"""LiveIndex: a query tower and its index, searched, changed and exchanged while they serve.

Both are behind one reference, so no query meets an index of another training. A change is written
to the log before it is applied to the index, so acknowledged changes survive the process.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from twotower.bundle.exported_model import hashes_of_ids
from twotower.live.entries import ADD, REMOVE, Entry
from twotower.live.log import SIDES, WriteAheadLog
from twotower.live.pair import FORMAT_VERSION, Checks, Pair, failed_checks
from twotower.ragged import Ragged
from twotower.retrieval import build, store
from twotower.retrieval.arguments import checked_keys
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import Candidates
from twotower.storage import description, paths
from twotower.storage.syncing import sync

# Replays before a swap takes the writers' lock: each leaves what was added during it.
ROUNDS = 3
# Seconds that a call waits for a swap, after which it is refused. Without a limit, a call and an
# `embed` that waits for the thread of this call would wait for ever.
SWAP_TIMEOUT = 10.0

# Keys [n] -> vectors [n, dim] of the new pair's item tower.
Embed = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a search found, and the training of the pair that found it.

    answer = live.search(inputs, k=100)
    answer.candidates.keys, answer.model_version
    """

    candidates: Candidates
    model_version: str


class LiveItems(NamedTuple):
    """All items of a live index up to one log entry, to build another index from.

    Attributes:
        keys: `[num_items]` int64.
        vectors: `[num_items, dim]` float32.
        sequence: The last log entry that they include, for `Pair.sequence`.

        keys, vectors, sequence = live.items()
        retriever = build.build(build.IndexConfig("hnsw"), keys, vectors)
    """

    keys: np.ndarray
    vectors: np.ndarray
    sequence: int


class SwapRefused(ValueError):
    """A swap refused a pair; `failed` has a line for each reason.

    >>> SwapRefused(["items: the index holds 3; expected exactly 5"]).failed
    ['items: the index holds 3; expected exactly 5']
    """

    def __init__(self, failed: Sequence[str]) -> None:
        super().__init__("the pair is not exchanged, the old one stays: " + "; ".join(failed))
        self.failed = list(failed)


class LiveIndex:
    """Searches a pair while other threads change it or exchange it for another one.

    Searches take no lock: one under way ends with the pair that it began with. Changes and swaps
    wait for one another. When a change warns that the index needs a rebuild, build a new one from
    `items()` beside this one, and swap it in. If only the buffer is full, a swap to a snapshot of
    this index is enough, since the swap absorbs the buffer:

        live.snapshot("W/live")
        live.swap(Pair.from_snapshot("W/live", Bundle("W/bundle")))

    Args:
        pair: The first to answer. The log's entries after `pair.sequence` are replayed into its
            index, which absorbs them if they are more than a buffer should hold. Until that is done
            nothing else may search the index.
        log: The log of this index, which no other index writes to.
        checks: What `swap` requires of a pair.
        embed: As in `swap`; needed if the log holds vectors of another training.

    Raises:
        ValueError: A pair of two trainings, or a log that cannot be replayed into it, for example
            because its keys are other items in the pair's bundle.

        with WriteAheadLog("changes.log") as log:
            live = LiveIndex(Pair.from_bundle(Bundle("W/bundle"), "hnsw"), log)
            live.add(keys, vectors, live.pair.model_version)
            answer = live.search(inputs, k=100)
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
        self._swapper: int | None = None  # the thread that swaps
        self._is_last_replay = False  # of a swap, which holds the writers' lock
        # Last log entry applied to each retriever that is still in use: a pair swapped back in
        # goes on from there.
        self._applied: weakref.WeakKeyDictionary[Retriever, int] = weakref.WeakKeyDictionary()
        # Key -> hash of the id, of items that were added and that no bundle has.
        self._new_id_hashes = dict(pair.new_id_hashes)
        self._pair = pair
        self._replay(pair, embed)
        _absorb_if_full(pair.retriever)

    @property
    def pair(self) -> Pair:
        """The live pair. A swap may come between two reads: read it once, and use that one."""
        return self._pair

    @property
    def sequence(self) -> int:
        """Last log entry that the live index holds; `items` gives it together with the items."""
        return self._applied[self._pair.retriever]

    def items(self) -> LiveItems:
        """All items of the live index and the last log entry that they include; `swap` replays all
        later entries into a pair built from them."""
        pair = self._pair
        sequence = self._applied[pair.retriever]  # first: what comes in between is replayed again
        return LiveItems(*pair.retriever.live(), sequence)

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

    def add(
        self,
        keys: np.ndarray,
        vectors: np.ndarray,
        model_version: str,
        ids: Sequence[str] | None = None,
    ) -> int:
        """Adds items or replaces their vectors; the next search finds them.

        Args:
            keys: `[num_items]` integers.
            vectors: `[num_items, dim]` floats of the live training's item tower.
            model_version: The training that they come from.
            ids: `[num_items]`, ids of the items. They are needed where a new item has a key that
                the live bundle does not have. A later bundle may give this key to another item, and
                only by its id does the log know that the item is another one.

        Returns:
            The log entry's number. From here on the change survives the process.

        Raises:
            ValueError: As in `Retriever.add`, vectors of another training, ids that are missing or
                are not those of the bundle, a call from inside of a swap or from another process,
                or a swap that has kept the call waiting for `SWAP_TIMEOUT` seconds; nothing is
                logged.
            sqlite3.Error: The log cannot be written; nothing is changed.
        """
        with self._holding(self._writing):
            pair = self._pair
            if model_version != pair.model_version:
                raise ValueError(
                    f"vectors of training {model_version!r} do not fit the live one, "
                    f"{pair.model_version!r}. Embed the items with its item tower."
                )
            retriever = pair.retriever
            checked = retriever.checked_items(keys, vectors, retriever.dim)
            hashes = self._hashes(checked.keys, ids)
            if pair.id_hashes is not None and not hashes.all():
                raise ValueError(
                    f"keys {checked.keys[hashes == 0][:5].tolist()} are of no item of the live "
                    "bundle. Give ids, too, so that the log knows these items again under another "
                    "bundle."
                )
            # Not `checked.vectors`: cosine has scaled them, and would scale them again.
            return self._write(ADD, checked.keys, hashes, np.asarray(vectors, np.float32))

    def remove(self, keys: np.ndarray) -> int:
        """Removes the items of `keys` `[n]`; the next search does not find them.

        Returns:
            The log entry's number, as in `add`.

        Raises:
            ValueError: A key that is not in the index, or a call as in `add`; nothing is logged.
            sqlite3.Error: The log cannot be written; nothing is changed.
        """
        with self._holding(self._writing):
            self._replay(self._pair)  # what an earlier call logged and failed to apply is known
            keys = checked_keys(keys, "keys")
            self._pair.retriever.require_known(keys)
            return self._write(REMOVE, keys, self._hashes(keys))

    @contextlib.contextmanager
    def _holding(self, lock: threading.Lock) -> Iterator[None]:
        """Holds the lock of writers or of swaps.

        Raises:
            ValueError: A forked process, a call from inside of a swap, or a swap that has kept the
                call waiting for `SWAP_TIMEOUT` seconds.
        """
        self._log.check_process()
        if self._swapper == threading.get_ident():
            raise ValueError(
                "the index cannot be changed, saved or exchanged by the query tower or the embed "
                "that a swap calls: the swap would wait for itself. Do it before or after the swap."
            )
        while not lock.acquire(timeout=SWAP_TIMEOUT):
            if lock is self._swapping or self._is_last_replay:
                raise ValueError(
                    f"a swap has kept this call waiting for {SWAP_TIMEOUT:g} seconds, so nothing "
                    "was done. Call again when the swap has ended. The embed of a swap must not "
                    "wait for a thread that changes, saves or swaps the index."
                )
        try:
            yield
        finally:
            lock.release()

    def _hashes(self, keys: np.ndarray, ids: Sequence[str] | None = None) -> np.ndarray:
        """Hashes of the ids of the items `keys` `[num_keys]`, for the log; 0 where not known."""
        hashes = self._pair.hashes_of(keys)
        new = np.flatnonzero(hashes == 0)
        hashes[new] = [self._new_id_hashes.get(key, 0) for key in keys[new].tolist()]
        if ids is None:
            return hashes
        given = np.array(ids, object)
        if given.shape != keys.shape or not all(isinstance(name, str) and name for name in given):
            raise ValueError(f"ids must be {len(keys)} texts, one a key; got {ids!r}.")
        given = hashes_of_ids(given) if len(given) else hashes
        differs = (hashes != given) & (hashes != 0)
        differs[new] = False  # another item may take the key of a new one
        if differs.any():
            row = differs.argmax()
            raise ValueError(
                f"key {keys[row]} is another item in the live bundle than {ids[row]!r}. Give a new "
                "item a key that the bundle does not have."
            )
        return given

    def _write(
        self, op: str, keys: np.ndarray, hashes: np.ndarray, vectors: np.ndarray | None = None
    ) -> int:
        pair, retriever = self._pair, self._pair.retriever
        before = retriever.needs_rebuild
        sequence = self._log.append(op, pair.model_version, keys, vectors, hashes)
        # Applied as after a crash, from the log: so an entry whose application failed (out of
        # memory) comes with the next one, and never out of order.
        self._replay(pair)
        if retriever.needs_rebuild and not before:
            warnings.warn(
                "build the live index anew from LiveIndex.items, and swap it in; if only its "
                "buffer is full, swap in Pair.from_snapshot of a new snapshot: "
                f"{retriever.needs_rebuild}.",
                stacklevel=3,
            )
        return sequence

    def _replay(self, pair: Pair, embed: Embed | None = None) -> None:
        """Applies the log's entries that the pair's index lacks; of each key the last one."""
        retriever = pair.retriever
        sequence, digest = self._applied.get(retriever, 0), ""
        if sequence <= pair.sequence:
            sequence, digest = pair.sequence, pair.digest
        # What each key's last entry left: the bytes of its vector (a copy, so that no whole entry
        # stays in memory), or the other training that its vector is of. `gone` is to be removed.
        fitting: dict[int, bytes] = {}
        foreign: dict[int, str] = {}
        gone: set[int] = set()
        for entry in self._log.since(sequence, digest):
            hashes = pair.hashes_of(entry.keys)
            _require_same_items(entry, hashes, pair)
            sequence, keys = entry.sequence, entry.keys.tolist()
            if pair is self._pair:
                is_new = (entry.id_hashes != 0) & (hashes == 0)
                new = zip(entry.keys[is_new].tolist(), entry.id_hashes[is_new].tolist())
                self._new_id_hashes.update(new)
            for key in keys:
                fitting.pop(key, None)
                foreign.pop(key, None)
            if entry.op == REMOVE:
                gone.update(entry.keys[retriever.knows(entry.keys)].tolist())
                continue
            gone.difference_update(keys)
            if entry.model_version == pair.model_version:
                fitting.update(zip(keys, (vector.tobytes() for vector in entry.vectors)))
            else:
                foreign.update(dict.fromkeys(keys, entry.model_version))
        if foreign:
            if embed is None:
                raise ValueError(
                    f"{len(foreign)} items were added with vectors of training "
                    f"{sorted({*foreign.values()})}, not of {pair.model_version!r}: pass embed, "
                    "which computes them by the pair's item tower"
                )
            keys = np.array([*foreign])
            retriever.add(keys, embed(keys))
        if fitting:
            # From a bytearray, so that the array is writable.
            vectors = np.frombuffer(bytearray().join(fitting.values()), np.float32)
            retriever.add(np.array([*fitting]), vectors.reshape(len(fitting), -1))
        if gone:
            retriever.remove(np.array([*gone]))
        self._applied[retriever] = sequence

    def swap(self, pair: Pair, embed: Embed | None = None, checks: Checks | None = None) -> Pair:
        """Makes another pair the live one, in one step, with all that was acknowledged.

        Args:
            pair: Built from an older snapshot, or one that was live before. Its index takes the
                log's entries after `pair.sequence`, most of them while writers go on. An index
                that comes for the first time then absorbs its buffer, if that is too full.
            embed: Keys `[n]` -> vectors `[n, dim]` of the pair's item tower, for items that were
                added with vectors of another training. It must not change this index. If it
                waits for another thread that does, the change may be refused after
                `SWAP_TIMEOUT` seconds.
            checks: For this swap, instead of the checks of the index.

        Returns:
            The pair that was live; it still answers the searches that hold it.

        Raises:
            SwapRefused: A check failed, or the log cannot be replayed, for example because
                `embed` changes the index, or a key is another item in the pair's bundle. The old
                pair stays.
            ValueError: No checks, a call from inside of another swap, or another swap that has
                kept this one waiting for `SWAP_TIMEOUT` seconds.
        """
        checks = checks or self.checks
        if checks is None:
            raise ValueError("a swap needs Checks: give them to LiveIndex, or to this call.")
        with self._holding(self._swapping):
            self._swapper = threading.get_ident()
            try:
                return self._swapped(pair, embed, checks)
            finally:
                self._swapper, self._is_last_replay = None, False

    def _swapped(self, pair: Pair, embed: Embed | None, checks: Checks) -> Pair:
        failed = failed_checks(pair, checks, len(self._pair.retriever))
        if failed:
            raise SwapRefused(failed)
        try:
            # An index that is live already is changed under the writers' lock alone.
            if pair.retriever is not self._pair.retriever:
                is_new = pair.retriever not in self._applied  # so no search is under way in it
                for _ in range(ROUNDS):
                    self._replay(pair, embed)
                if is_new:
                    _absorb_if_full(pair.retriever)
            with self._writing:
                self._is_last_replay = True
                self._replay(pair, embed)
                old, self._pair = self._pair, pair
        except ValueError as error:
            raise SwapRefused([f"replay: {error}"]) from error
        return old

    def snapshot(self, directory: str | pathlib.Path) -> int:
        """Saves the live index and the number of its last log entry; searches go on meanwhile.

        Restart: `LiveIndex(Pair.from_snapshot(directory, bundle), log)`.

        Returns:
            The last entry in it. Then `log.truncate` of it frees the log, unless a pair built from
            an older snapshot is still to come.

        Raises:
            ValueError: A folder that may not be replaced, such as one that holds the log, or a call
                as in `add`; the log and the folder stay as they are.
        """
        directory = paths.local(directory).resolve()
        with self._holding(self._writing):
            self._require_apart(directory)
            with build.replacing(directory, "live.json") as folder:
                sequence = self._save(folder)
        sync(directory.parent)
        return sequence

    def _save(self, folder: pathlib.Path) -> int:
        """Writes the live index and the number of its last log entry, which it returns."""
        pair, sequence = self._pair, self.sequence
        build.save(pair.retriever, folder / "index", pair.index_version)
        index = "index/index.json"
        described = {
            "format_version": FORMAT_VERSION,
            "sequence": sequence,
            "digest": self._log.digest(sequence),
            # Entries that are truncated leave these here alone. Not JSON's integers, which are
            # read as int64.
            "new_id_hashes": {
                str(key): f"{value:x}" for key, value in dict(self._new_id_hashes).items()
            },
            # Detects a copy of another snapshot over this one that stopped between these files.
            "files": {index: hashlib.sha256((folder / index).read_bytes()).hexdigest()},
        }
        description.write(folder / "live.json", described)
        # The log may be truncated next, so the files must survive a power cut.
        for path in [folder, *folder.rglob("*")]:
            sync(path)
        return sequence

    def _require_apart(self, directory: pathlib.Path) -> None:
        """Raises ValueError for a folder that holds the log, or stands in its journal's way."""
        log = self._log.path
        for path in (log, *log.parents):
            # Compared as files, too: a bind mount gives a folder a second name, and so does a file
            # system that ignores case.
            if path == directory or (directory.exists() and directory.samefile(path)):
                raise ValueError(
                    f"{directory} is or holds the log, {log}, which a snapshot there would delete. "
                    "Save it to another folder."
                )
        if directory.parent == log.parent and directory.name in {log.name + end for end in SIDES}:
            raise ValueError(
                f"{directory} is where SQLite lays a file beside the log. Give another folder."
            )


def _absorb_if_full(retriever: Retriever) -> None:
    """Absorbs the buffer if it is too full. No other thread may search the index meanwhile."""
    if len(retriever.state()["fresh_keys"]) > store.MAX_BUFFER:
        retriever.absorb()


def _require_same_items(entry: Entry, hashes: np.ndarray, pair: Pair) -> None:
    """Raises ValueError if a key of a log entry is another item in a pair's bundle.

    A new training may list its items in another order, and the replay would change other items.
    `hashes` are those of the entry's keys in the pair's bundle.
    """
    differs = (entry.id_hashes != hashes) & (entry.id_hashes != 0) & (hashes != 0)
    if differs.any():
        raise ValueError(
            f"entry {entry.sequence} of the log changes key {entry.keys[differs][0]}, which was "
            f"one item while training {entry.model_version!r} was live, and is another one in the "
            f"bundle of training {pair.model_version!r}. Start with a bundle in which keys "
            "are the same items; or make a LiveIndex of this pair with a new log, and repeat "
            "the changes with its keys"
        )
