"""Vectors to measure indexes on: a bundle's own, enlarged; Gaussian clusters; files of yours.

Queries come from the query tower and items from the item tower. The two are distributed
differently, which is hard for an index, since it is built on items and searched by queries.
"""

import dataclasses
import pathlib

import numpy as np

from twotower.retrieval.arguments import checked_rows

CHUNK = 1 << 18  # vectors made at a time


@dataclasses.dataclass(frozen=True)
class VectorSet:
    """What an index is built on and asked.

    Attributes:
        name: In tables.
        vectors: `[num_items, dim]` float32; the item at position i has key i.
        queries: `[num_queries, dim]` float32.
    """

    name: str
    vectors: np.ndarray
    queries: np.ndarray


def nearest_distance(vectors: np.ndarray) -> float:
    """Median over `[num_items, dim]` vectors of length 1 of the distance to the nearest other."""
    products = vectors @ vectors.T
    np.fill_diagonal(products, -np.inf)
    return float(np.median(np.sqrt(np.maximum(2 - 2 * products.max(1), 0))))


def enlarged(vectors: np.ndarray, num_items: int, noise: float, seed: int = 0) -> np.ndarray:
    """`num_items` vectors of length 1, each one of `vectors` plus Gaussian noise.

    Args:
        vectors: `[num_known, dim]` of length 1.
        num_items: How many to make.
        noise: Length of the noise, in units of `nearest_distance(vectors)`: at .5 copies of an
            item stay apart from those of others, at 2 they mix.
        seed: Equal seeds give equal vectors.
    """
    rng, (num_known, dim) = np.random.default_rng(seed), vectors.shape
    scale = np.float32(noise * nearest_distance(vectors) / np.sqrt(dim))
    made = np.empty((num_items, dim), np.float32)
    for start in range(0, num_items, CHUNK):
        part = made[start : start + CHUNK]
        part[:] = vectors[rng.integers(num_known, size=len(part))]
        part += scale * rng.standard_normal(part.shape, np.float32)
        part[:] = checked_rows(part, "cosine", "vectors in rows")
    return made


def gaussian(num_items: int, num_queries: int, dim: int, centres: int = 1000, seed: int = 0):
    """Vectors and queries of length 1 around the same centres: the easy case."""
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centres, dim), np.float32)

    def draw(num):
        made = np.empty((num, dim), np.float32)
        for start in range(0, num, CHUNK):
            part = made[start : start + CHUNK]
            part[:] = middle[rng.integers(centres, size=len(part))]
            part += 0.7 * rng.standard_normal(part.shape, np.float32)
            part[:] = checked_rows(part, "cosine", "vectors in rows")
        return made

    return draw(num_items), draw(num_queries)


def scann_sizes(num_items: int, k: int) -> dict[str, int]:
    """ScaNN's parameters for `num_items`, before tuning; it rescores ten candidates per answer."""
    leaves = max(2, int(2 * np.sqrt(num_items)))
    return {
        "num_leaves": leaves,
        "num_leaves_to_search": max(1, leaves // 20),
        "num_reordering_candidates": min(num_items, 10 * k),
    }


def read(path: str | pathlib.Path, name: str = "train") -> np.ndarray:
    """`[num, dim]` float32 from a file: .npy, .fvecs, or .hdf5 in the layout of ann-benchmarks.

    Args:
        path: The file; .npy is memory-mapped.
        name: In an HDF5 file, the data set: `train` holds the items, `test` the queries.

    Raises:
        ValueError: Another ending, or a file that is not what its ending says.
    """
    path = pathlib.Path(path)
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    elif path.suffix == ".fvecs":
        # Each vector: its length as int32, then that many float32.
        raw = np.fromfile(path, np.int32)
        if not len(raw) or raw[0] < 1 or len(raw) % (raw[0] + 1):
            raise ValueError(f"{path} is no fvecs file: its size fits no dimension.")
        rows = raw.reshape(-1, raw[0] + 1)
        if (rows[:, 0] != raw[0]).any():
            raise ValueError(f"{path} is no fvecs file of one dimension ({raw[0]}).")
        array = rows[:, 1:].copy().view(np.float32)
    elif path.suffix in (".hdf5", ".h5"):
        import h5py

        with h5py.File(path) as file:
            if name not in file:
                raise ValueError(f"{path} has no data set {name!r}; it has {sorted(file)}.")
            array = file[name][:]
    else:
        raise ValueError(f"{path}: expected .npy, .fvecs or .hdf5.")
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{path}: expected floats [num, dim]; got {array.dtype} {array.shape}.")
    return np.ascontiguousarray(array, np.float32)
