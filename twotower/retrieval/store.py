"""Store: the items of an index at one time: built, removed and new ones."""

import dataclasses
import functools
import pathlib
from typing import Literal

import numpy as np

from twotower.retrieval.candidates import NO_KEY
from twotower.retrieval.vectors import KeyedVectors

# When an index should absorb its buffer or be built anew (`Store.worn`). A search scans the whole
# buffer and fetches 1 / (1 - tombstones) times as many candidates. So both cost time, but no
# recall. At 100,000 x 128 a search took .1 to .2 ms more from the first tombstone on, and hardly
# more with two in five; .2 ms more with 1,000 in the buffer, .5 with 10,000, .7 with 20,000 and 1.4
# with 50,000 (experiments/results/indexes/index_updates.json).
MAX_BUFFER = 10_000  # vectors
MAX_TOMBSTONES = 0.2  # share of those built


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """The items of an index. It is immutable: a change makes a new Store, so a running search sees
    one state.

    Attributes:
        built: What the backend was built from.
        removed: `[num_built]` bool, removed and replaced vectors; exact scans step over them.
        fresh: The buffer: vectors added since, scanned exactly with every search.
        forgotten: How many of the removed ones the backend has dropped. The others are tombstones:
            the backend may still find them, so every search has to leave them out.

    >>> store = Store.of(KeyedVectors(np.array([7, 8]), np.eye(2, dtype=np.float32), "dot"))
    >>> store.remove(np.array([7])).keys.tolist(), store.keys.tolist()
    ([8], [7, 8])
    """

    built: KeyedVectors
    removed: np.ndarray
    fresh: KeyedVectors
    forgotten: int = 0

    @functools.cached_property
    def num_removed(self) -> int:
        """How many built vectors are removed or replaced."""
        return int(np.count_nonzero(self.removed))

    @property
    def num_tombstones(self) -> int:
        """How many of those the backend may still find."""
        return self.num_removed - self.forgotten

    @functools.cached_property
    def num_keyless(self) -> int:
        """How many vectors without a key (see `absorbed`) the backend may still find."""
        keyless = int(np.count_nonzero(self.built.keys == NO_KEY)) if self.num_removed else 0
        return keyless - self.forgotten

    @functools.cached_property
    def is_changed(self) -> bool:
        """Whether a search needs more than the backend's answer."""
        return self.num_tombstones > 0 or len(self.fresh) > 0

    @functools.cached_property
    def _alive(self) -> np.ndarray | None:
        return ~self.removed if self.num_removed else None

    @classmethod
    def of(cls, built: KeyedVectors) -> "Store":
        """Without updates."""
        fresh = KeyedVectors(built.keys[:0], np.empty((0, built.dim), np.float32), built.metric)
        return cls(built, np.zeros(len(built), bool), fresh)

    def __len__(self) -> int:
        return len(self.built) - self.num_removed + len(self.fresh)

    @property
    def keys(self) -> np.ndarray:
        """Keys of the items that a search may find, `[num_items]` int64, ascending."""
        return np.sort(np.concatenate([self.built.keys[~self.removed], self.fresh.keys]))

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays, those on disk included."""
        return self.built.num_bytes + self.removed.nbytes + self.fresh.num_bytes

    @property
    def full(self) -> str:
        """A text that says how far the buffer is over its limit; "" while it is not."""
        if len(self.fresh) <= MAX_BUFFER:
            return ""
        return (
            f"{len(self.fresh)} vectors in the buffer, of {MAX_BUFFER} at most: each change copies "
            "them and each search scans them, until absorb or build"
        )

    @property
    def worn(self) -> str:
        """Which of the two limits is exceeded; "" if none is."""
        if self.full:
            return self.full
        if self.num_tombstones > MAX_TOMBSTONES * len(self.built):
            return f"{self.num_tombstones} of {len(self.built)} vectors are tombstones"
        return ""

    def add(self, new: KeyedVectors) -> "Store":
        """A store with further items, which replace those with the same keys."""
        kept = self.remove(new.keys)
        keys = np.concatenate([kept.fresh.keys, new.keys])
        vectors = np.concatenate([kept.fresh.vectors, new.vectors])
        return dataclasses.replace(kept, fresh=KeyedVectors(keys, vectors, new.metric))

    def count_allowed(self, is_allowed: np.ndarray | None) -> int:
        """Number of built vectors that `is_allowed` `[num_built]` allows; None allows all that are
        not removed."""
        if is_allowed is None or is_allowed is self._alive:
            return len(self.built) - self.num_removed
        return int(np.count_nonzero(is_allowed))

    def knows(self, keys: np.ndarray) -> np.ndarray:
        """Which of these int64 keys a search may find, `[num_keys]` bool."""
        position = self.built.positions(keys)
        known = (position >= 0) & ~self.removed[position]
        return known | (self.fresh.positions(keys) >= 0)

    def remove(self, keys: np.ndarray) -> "Store":
        """A store without the items of `keys` `[n]`; unknown keys are ignored."""
        removed, fresh = self.removed.copy(), self.fresh
        position = self.built.positions(keys)
        removed[position[position >= 0]] = True
        gone = fresh.positions(keys)
        if (gone >= 0).any():
            keep = np.delete(np.arange(len(fresh)), gone[gone >= 0])
            fresh = KeyedVectors(fresh.keys[keep], fresh.vectors[keep], fresh.metric)
        return Store(self.built, removed, fresh, self.forgotten)

    def is_allowed(self, allow: np.ndarray | None) -> np.ndarray | None:
        """`[num_built]` bool, which built vectors may be found; None if all may.

        Args:
            allow: `[num_allowed]` int64 keys; None for no filter.
        """
        if allow is None:
            return self._alive
        position = self.built.positions(allow)
        is_allowed = np.zeros(len(self.built), bool)
        is_allowed[position[position >= 0]] = True
        return is_allowed if self._alive is None else is_allowed & self._alive

    def absorbed(self, forgets: bool) -> "Store":
        """A store with the buffer after the built vectors. Removed vectors keep their positions but
        lose their keys, so that the positions of a backend stay valid.

        Args:
            forgets: Whether the backend deletes the removed vectors.
        """
        keys = np.where(self.removed, NO_KEY, self.built.keys)
        built = KeyedVectors(
            np.concatenate([keys, self.fresh.keys]),
            np.concatenate([self.built.vectors, self.fresh.vectors]),
            self.built.metric,
        )
        removed = np.concatenate([self.removed, np.zeros(len(self.fresh), bool)])
        forgotten = self.num_removed if forgets else 0
        return dataclasses.replace(Store.of(built), removed=removed, forgotten=forgotten)

    def live(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys `[num_items]` and vectors `[num_items, dim]` of all items that a search may find."""
        alive = self._alive
        if alive is None:
            if not len(self.fresh):
                return self.built.keys, self.built.vectors
            alive = slice(None)
        return (
            np.concatenate([self.built.keys[alive], self.fresh.keys]),
            np.concatenate([self.built.vectors[alive], self.fresh.vectors]),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays to save, by name of the file; see `Retriever.state`."""
        return {
            "keys": self.built.keys,
            "vectors": self.built.vectors,
            "dead": self.removed,
            "fresh_keys": self.fresh.keys,
            "fresh_vectors": self.fresh.vectors,
        }

    def save(self, directory: pathlib.Path) -> None:
        """Writes the arrays into a folder."""
        for name, array in self.arrays().items():
            np.save(directory / f"{name}.npy", array)

    @classmethod
    def load(
        cls, directory: pathlib.Path, metric: str, mmap: bool = False, forgets: bool = False
    ) -> "Store":
        """Reads what `save` wrote.

        Args:
            directory: The folder.
            metric: That of the index.
            mmap: Whether the built vectors stay on disk until an exact scan needs them.
            forgets: As in `absorbed`.

        Raises:
            ValueError: An array of another shape or type than `save` writes.
        """

        def read(name: str, dtype, *shape: int | None) -> np.ndarray:
            path = directory / f"{name}.npy"
            mode: Literal["r"] | None = "r" if mmap and name == "vectors" else None
            array = np.load(path, mmap_mode=mode, allow_pickle=False)
            fits = [size in (None, real) for size, real in zip(shape, array.shape)]
            if array.dtype != dtype or array.ndim != len(shape) or not all(fits):
                raise ValueError(
                    f"{path}: expected {list(shape)} of {np.dtype(dtype)}; got "
                    f"{list(array.shape)} of {array.dtype}."
                )
            return array

        keys = read("keys", np.int64, None)
        vectors = read("vectors", np.float32, len(keys), None)
        fresh_keys = read("fresh_keys", np.int64, None)
        fresh_vectors = read("fresh_vectors", np.float32, len(fresh_keys), vectors.shape[1])
        return cls(
            KeyedVectors(keys, vectors, metric),
            read("dead", bool, len(keys)),
            KeyedVectors(fresh_keys, fresh_vectors, metric),
            int((keys == NO_KEY).sum()) if forgets else 0,
        )
