"""One index to measure: its vectors, their exact answers and the built index, kept in a cache."""

import dataclasses
import json
import os
import pathlib
import resource
import shutil
import time

import numpy as np
import vector_sets

from twotower.retrieval import build
from twotower.retrieval.candidates import Candidates

# Name in tables -> backend and how to build it. Efforts are found.
VARIANTS = {
    "exact": ("exact", {}),
    "flat": ("flat", {"threads": 1}),
    "ivf": ("ivf", {"threads": 1}),
    "hnsw": ("hnsw", {"threads": 1}),
    "hnsw-fp16": ("hnsw", {"threads": 1, "storage": "fp16"}),
    "hnsw-sq8": ("hnsw", {"threads": 1, "storage": "sq8"}),
    "ivf_pq": ("ivf_pq", {"threads": 1}),
    "scann": ("scann", {}),
    "scann-soar": ("scann", {"soar": True}),
    "milvus": ("milvus", {}),
}


@dataclasses.dataclass(frozen=True)
class Unit:
    """One index to build and measure; plain values, as it goes to another process."""

    source: str  # noise, "gaussian", or a file
    num_items: int
    variant: str
    metric: str
    k: int
    recall_target: float
    core: int
    build_only: bool
    bundle: str | None
    dim: int | None
    queries: str | None
    cache: str

    @property
    def set_name(self) -> str:
        """Of the vectors, for rows and files."""
        return pathlib.Path(self.source).stem if self.queries else self.source

    @property
    def identity(self) -> list:
        """What tells one unit's rows from another's."""
        return [self.set_name, self.num_items, self.dim, self.variant, self.metric, self.k]


def make_set(unit: Unit) -> vector_sets.VectorSet:
    """The unit's vectors, from the cache where they are there."""
    if unit.queries:
        vectors = vector_sets.read(unit.source)[: unit.num_items]
        return vector_sets.VectorSet(
            unit.set_name, vectors, vector_sets.read(unit.queries, "test")[:1000]
        )
    if unit.bundle:
        items = pathlib.Path(unit.bundle) / "items"
        known, queries = (np.load(items / f"{n}.npy") for n in ("vectors", "sample_queries"))
        if unit.dim not in (None, known.shape[1]):
            raise ValueError(f"--dim={unit.dim}, but {unit.bundle} has {known.shape[1]}.")
    dim = unit.dim or known.shape[1]
    path = pathlib.Path(unit.cache) / f"{unit.source}-{unit.num_items}x{dim}" / "vectors.npy"
    if unit.source == "gaussian":
        vectors, queries = vector_sets.gaussian(unit.num_items, 500, dim)
    elif path.exists():
        vectors = np.load(path)
    else:
        vectors = vector_sets.enlarged(known, unit.num_items, float(unit.source))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".part.npy"), vectors)
        os.replace(path.with_suffix(".part.npy"), path)
    return vector_sets.VectorSet(unit.source, vectors, queries)


def exact_answers(
    unit: Unit, data: vector_sets.VectorSet, folder: pathlib.Path, num: int
) -> Candidates:
    """The exact best `num` of every query."""
    width = min(num, len(data.vectors))
    path = folder / f"exact-{unit.metric}-{width}.npz"
    if not path.exists():
        config = build.IndexConfig("flat", unit.metric)
        index = build.build(config, np.arange(len(data.vectors)), data.vectors)
        best = index.search(data.queries, width)
        np.savez(path, keys=best.keys, scores=best.scores, counts=best.counts)
    with np.load(path) as arrays:
        return Candidates(arrays["keys"], arrays["scores"], arrays["counts"])


def built(unit: Unit, data: vector_sets.VectorSet, folder: pathlib.Path) -> tuple:
    """The index, from the cache where it is there, and the row that tells of its build."""
    place = folder / f"{unit.variant}-{unit.metric}"
    if (place / "build.json").exists():
        return build.load(place / "index"), json.loads((place / "build.json").read_text())
    backend, parameters = VARIANTS[unit.variant]
    num = len(data.vectors)
    if backend == "scann":
        parameters = vector_sets.scann_sizes(num, unit.k) | parameters
    if backend.startswith("ivf") and num >= 1_000_000:
        # The articles' nlist at a million.
        parameters = {"num_lists": 4096 if num < 2_000_000 else 8192} | parameters
    config = build.IndexConfig(backend, unit.metric, parameters)
    wall, cpu = time.perf_counter(), time.process_time()
    index = build.build(config, np.arange(num), data.vectors)
    row = {
        "build_s": time.perf_counter() - wall,
        # Nearly independent of what else the machine does.
        "build_cpu_s": time.process_time() - cpu,
        "bytes_per_vector": index.backend_bytes / num,
        "memory_bytes_per_vector": index.memory_bytes / num,
        "build_parameters": dataclasses.asdict(index.config),
    }
    shutil.rmtree(place, ignore_errors=True)
    build.save(index, place / "index")
    size = sum(path.stat().st_size for path in (place / "index").rglob("*") if path.is_file())
    row["disk_bytes_per_vector"] = size / num
    row["peak_rss_gib"] = peak_gib()
    (place / "build.json").write_text(json.dumps(row, indent=1))
    return index, row


def peak_gib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
