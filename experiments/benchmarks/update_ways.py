"""Changes of a catalogue, three ways to apply them to an index, and a thread that searches.

Each way has `index`, `search(queries, k)` and `update(changes) -> columns of a row`.
"""

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Iterator

import numpy as np

from twotower.live.index import LiveIndex
from twotower.live.log import WriteAheadLog
from twotower.live.pair import Checks, Pair
from twotower.retrieval import build
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import Candidates

BATCHES = 10  # acknowledgements of a round before the snapshot of `Dual`, and as many after it
PAUSE = 5e-4  # seconds between a reader's searches: a lock without turns would starve the writer
VERSION = "one"  # the only training there is


@dataclasses.dataclass(frozen=True)
class Changes:
    """Some changes of a catalogue.

    Attributes:
        keys: `[num_changed]`, of new items and of items whose vectors are replaced.
        vectors: `[num_changed, dim]`.
        removed: `[num_removed]` keys.
    """

    keys: np.ndarray
    vectors: np.ndarray
    removed: np.ndarray

    def parts(self, num: int) -> list["Changes"]:
        """The same in `num` parts, or fewer where there is less to divide."""
        num = min(num, len(self.removed))
        arrays = (self.keys, self.vectors, self.removed)
        return [Changes(*part) for part in zip(*(np.array_split(a, num) for a in arrays))]

    def applied_to(self, keys: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys and vectors of a catalogue with these changes."""
        kept = ~np.isin(keys, np.concatenate([self.keys, self.removed]))
        vectors = np.concatenate([vectors[kept], self.vectors])
        return np.concatenate([keys[kept], self.keys]), vectors


def stream(num_first: int, later: np.ndarray, rounds: int) -> Iterator[Changes]:
    """Rounds of changes, each with as many items new as replaced and as removed.

    Args:
        num_first: Items there are, with keys from 0.
        later: `[num_later, dim]`: half of them for new items, half for replaced ones.
        rounds: Among which they are divided.

    Raises:
        ValueError: Under 2 of each a round, or more than half of the items.
    """
    rng, live = np.random.default_rng(1), np.arange(num_first)
    num = len(later) // (2 * rounds)
    if not 2 <= num <= num_first // 2:
        raise ValueError(
            f"a round would replace {num} of {num_first} items; expected 2 or more, and half at "
            "most. Change --change_share, --rounds or --num_items."
        )
    for number in range(rounds):
        replaced, removed = rng.choice(live, (2, num), replace=False)
        new = num_first + number * num + np.arange(num)
        keys = rng.permutation(np.concatenate([new, replaced]))
        yield Changes(keys, later[2 * num * number : 2 * num * (number + 1)], removed)
        live = np.concatenate([np.setdiff1d(live, removed), new])


def rebuilt(index: Retriever, keys: np.ndarray, vectors: np.ndarray) -> Retriever:
    """Another index with the parameters of this one, tuned ones included."""
    config = build.IndexConfig(index.backend, index.metric, dataclasses.asdict(index.config))
    other = build.build(config, keys, vectors)
    other.tuned = index.tuned
    return other


class Incremental:
    """Changes go into the index in place; searches wait while it absorbs them.

    Args:
        index: The first build, tuned.
        log: For a way that acknowledges changes.
        probes: `[num_probes, dim]` queries, for one that checks an index.
    """

    def __init__(self, index: Retriever, log: WriteAheadLog, probes: np.ndarray) -> None:
        self.index, self._gate = index, threading.Lock()

    def search(self, queries: np.ndarray, k: int) -> Candidates:
        with self._gate:
            return self.index.search(queries, k)

    def update(self, changes: Changes) -> dict:
        started = time.perf_counter()
        self.index.add(changes.keys, changes.vectors)
        self.index.remove(changes.removed)
        visible = seconds_to_find(self, changes, started)
        with self._gate:
            self.index.absorb()
        return {"visible_s": visible, "memory_updating_mib": mib(self.index)}


class Full:
    """Changes wait for a new index over all items, which takes the old one's place."""

    def __init__(self, index: Retriever, log: WriteAheadLog, probes: np.ndarray) -> None:
        self.index = index

    def search(self, queries: np.ndarray, k: int) -> Candidates:
        return self.index.search(queries, k)

    def update(self, changes: Changes) -> dict:
        started, old = time.perf_counter(), self.index
        self.index = rebuilt(old, *changes.applied_to(*old.live()))
        visible = seconds_to_find(self, changes, started)
        return {"visible_s": visible, "memory_updating_mib": mib(old, self.index)}


class Dual:
    """A second index is built aside, while the first takes changes and answers; then a swap."""

    def __init__(self, index: Retriever, log: WriteAheadLog, probes: np.ndarray) -> None:
        # The new index's recall is measured by the caller, not judged here.
        checks = Checks({"query": probes}, recall_target=0)
        self._live = LiveIndex(self._pair(index), log, checks)
        self._build_s = 0.0  # of the last one

    def _pair(self, index: Retriever, sequence: int = 0) -> Pair:
        return Pair(lambda inputs: inputs["query"], index, VERSION, VERSION, sequence)

    @property
    def index(self) -> Retriever:
        return self._live.pair.retriever

    def search(self, queries: np.ndarray, k: int) -> Candidates:
        return self._live.search({"query": queries}, k).candidates

    def _acknowledged(self, part: Changes) -> float | None:
        started = time.perf_counter()
        self._live.add(part.keys, part.vectors, VERSION)
        self._live.remove(part.removed)
        return seconds_to_find(self, part, started)

    def update(self, changes: Changes) -> dict:
        parts, old = changes.parts(2 * BATCHES), self.index
        before = len(parts) // 2
        visible = [self._acknowledged(part) for part in parts[:before]]
        started = time.perf_counter()
        keys, vectors, sequence = self._live.items()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            building = pool.submit(rebuilt, old, keys, vectors)
            for part in parts[before:]:
                visible.append(self._acknowledged(part))
                # Spread over as long as the last build took.
                concurrent.futures.wait([building], self._build_s / (2 * BATCHES))
            other = building.result()
        swapping = time.perf_counter()
        self._build_s, replayed = swapping - started, self._live.sequence - sequence
        self._live.swap(self._pair(other, sequence))
        return {
            "visible_s": None if None in visible else max(visible),
            "memory_updating_mib": mib(old, other),
            "swap_s": time.perf_counter() - swapping,
            "replayed": replayed,
        }


WAYS = {"incremental": Incremental, "full": Full, "dual": Dual}


def mib(*indexes: Retriever) -> float:
    """Memory of indexes together."""
    return sum(index.memory_bytes for index in indexes) / 2**20


def seconds_to_find(way, changes: Changes, started: float) -> float | None:
    """Seconds since `started` until a search finds one of the changed items by its new vector;
    None where none of the first 20 is found."""
    for key, vector in zip(changes.keys[:20], changes.vectors):
        if key in way.search(vector[None], 10).keys:
            return time.perf_counter() - started
    return None


def num_wrong(index: Retriever, keys: np.ndarray, vectors: np.ndarray) -> int:
    """Number of items that the index lacks, should not have, or has with a wrong vector."""
    found, stored = index.live()
    _, here, there = np.intersect1d(found, keys, return_indices=True)
    differ = (stored[here] != vectors[there]).any(1).sum()
    return int(differ) + len(np.setxor1d(found, keys))


class Reader:
    """Asks one query after another on a thread of its own, inside its `with` block.

    Attributes:
        seconds: Of each search.
    """

    def __init__(self, way, queries: np.ndarray, k: int) -> None:
        self.seconds: list[float] = []
        self._way, self._queries, self._k = way, queries, k
        self._stop, self._pool = threading.Event(), concurrent.futures.ThreadPoolExecutor(1)

    def _read(self) -> None:
        while not (self._stop.is_set() and self.seconds):
            row = len(self.seconds) % len(self._queries)
            started = time.perf_counter()
            self._way.search(self._queries[row : row + 1], self._k)
            self.seconds.append(time.perf_counter() - started)
            time.sleep(PAUSE)

    def __enter__(self) -> "Reader":
        self._reading = self._pool.submit(self._read)
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        self._pool.shutdown()
        self._reading.result()
