"""Exact indexes of ones, and what stands in folders."""

import numpy as np

from twotower.retrieval import build


def exact(*keys: int):
    """An exact index of these keys, each a vector of ones."""
    vectors = np.ones((len(keys), 2), np.float32)
    return build.build(build.IndexConfig("exact"), np.array(keys), vectors)


def keys_of(folder) -> list[int]:
    return build.load(folder).keys.tolist()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
