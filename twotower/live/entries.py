"""Entries of the log of an index: what they hold, how they are numbered, and what chains them."""

import dataclasses
import hashlib

import numpy as np

ADD, REMOVE = "add", "remove"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """One acknowledged change.

    Attributes:
        sequence: Its number in the log, from 1.
        op: `ADD` (or replace) or `REMOVE`.
        model_version: The training that the vectors come from.
        keys: `[num_keys]` int64.
        vectors: `[num_keys, dim]` float32; `[num_keys, 0]` for a removal.
        id_hashes: `[num_keys]` uint64, hashes of the ids of the items, from `Pair.hashes_of`: 0
            where an id was not known.

    >>> removal = Entry(1, REMOVE, "m1", np.array([7]), np.empty((1, 0)), np.zeros(1, np.uint64))
    >>> removal.keys.tolist()
    [7]
    """

    sequence: int
    op: str
    model_version: str
    keys: np.ndarray
    vectors: np.ndarray
    id_hashes: np.ndarray


def entry_digest(
    before: bytes,
    sequence: int,
    dim: int,
    op: bytes,
    model_version: bytes,
    keys: bytes,
    vectors: bytes,
    id_hashes: bytes | None,
) -> bytes:
    """sha256 of an entry and, through the digest `before`, of all entries before it."""
    # Lengths, so that no byte can pass from one column to the next. The last column needs none;
    # without it, entries of format 2, which have no hashes, keep their digests.
    shape = f"{sequence} {dim} {len(op)} {len(model_version)} {len(keys)} {len(vectors)} "
    found = hashlib.sha256(before + shape.encode() + op + model_version)
    found.update(keys)
    found.update(vectors)
    found.update(id_hashes or b"")
    return found.digest()
