"""Small indexes to save, and the files of a folder."""

import numpy as np
from backends import needs

from twotower.retrieval import build

DIM, NUM = 8, 300


def changed_index(backend):
    """With two items removed, one replaced and one added."""
    if backend != "exact":
        needs(backend)
    rng = np.random.default_rng(5)
    vectors = np.float32(rng.normal(size=(NUM + 2, DIM)))
    keys = rng.permutation(np.arange(NUM) * 3 + 4)
    index = build.build(build.IndexConfig(backend), keys, vectors[:NUM])
    index.remove(keys[[0, 17]])
    index.add(np.array([keys[5], 10**10]), vectors[NUM:])
    return index


def two_axes():
    """An exact index of two axes, keys 3 and 1."""
    return build.build(build.IndexConfig("exact"), np.array([3, 1]), np.eye(2, dtype=np.float32))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())
