"""Predicts the cost of an index of a given size from measurements, and recommends an index.

`measured.json` holds bytes, build time, latency and recall of each kind of tuned index at several
sizes, as experiments/benchmarks/retrieval.py measured them. Power laws through those points
predict other sizes. `error_at_largest` gives their error at the largest size when that point is
left out. Beyond the largest size they are extrapolations.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from twotower.retrieval.store import MAX_TOMBSTONES

FILE = pathlib.Path(__file__).parent / "measured.json"
# Points below this share of the largest size show constant costs rather than growth.
LEAST_SHARE = 1 / 100
FLOAT_BYTES, KEY_BYTES, DAY = 4, 8, 86_400
# Exact search needs no tuning, build or rebuild, so it is chosen if it takes less than this.
EXACT_MS = 1.0
# Codes are searched in memory while the float32 vectors, scored again, may stay on disk.
CODED = ("hnsw-fp16", "hnsw-sq8", "ivf_pq")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted cost of an index, with one thread that searches.

    Attributes:
        variant: Kind of index, as in the measurements.
        num_items: Vectors.
        dim: Their length.
        index_bytes: What the index itself takes.
        vector_bytes: The float32 vectors and keys, for exact scans and scores; they may be
            memory-mapped.
        build_s: Seconds of a build on one core.
        p50_ms: Median milliseconds of a search, one thread.
        recall: Of the tuned index at the largest size measured.
        recall_of_codes: Lowest recall@100 measured of its codes alone, without scoring again by
            the float32 vectors; None where it has no codes.
        times_largest: `num_items` over the largest size measured.

    >>> cost = Prediction("ivf_pq", 10, 4, 100.0, 240.0, 1.0, 0.5, 0.98, 1.0)
    >>> cost.resident_bytes  # the vectors may stay on disk
    100.0
    """

    variant: str
    num_items: int
    dim: int
    index_bytes: float
    vector_bytes: float
    build_s: float
    p50_ms: float
    recall: float
    times_largest: float
    recall_of_codes: float | None = None

    @property
    def resident_bytes(self) -> float:
        """Bytes that must be in memory: only those of the codes if the vectors may stay on disk."""
        return self.index_bytes + (0 if self.variant in CODED else self.vector_bytes)


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Which index to take.

    Attributes:
        backend: For an IndexConfig.
        parameters: For an IndexConfig, too.
        why: One line for each kind of index, the chosen one first.

        found = suggest(5_000_000, 64, memory=4 * 2**30, updates=100_000)
        build.build(build.IndexConfig(found.backend, "dot", found.parameters), keys, vectors)
    """

    backend: str
    parameters: dict
    why: list[str]


@functools.cache
def measurements() -> tuple[dict, ...]:
    """The rows of `measured.json`."""
    return tuple(json.loads(FILE.read_text())["rows"])


def vector_bytes(num_items: int, dim: int) -> float:
    """Bytes of float32 vectors.

    >>> vector_bytes(800_000_000, 256) / 1e9  # GB
    819.2
    """
    return float(num_items) * dim * FLOAT_BYTES


def code_bytes(num_items: int, width: int) -> dict[str, float]:
    """Bytes of IVF-PQ: codes, the int64 number that each entry of a list carries, and both.

    >>> {name: value / 1e9 for name, value in code_bytes(800_000_000, 16).items()}  # GB
    {'codes': 12.8, 'numbers': 6.4, 'both': 19.2}
    """
    codes, numbers = float(num_items) * width, float(num_items) * 8
    return {"codes": codes, "numbers": numbers, "both": codes + numbers}


def fit(rows: Sequence[dict], name: str) -> np.ndarray:
    """Coefficients `[3]` of log value = a + b log num_items + c log dim, by least squares.

    Rows of one dim, or whose dim grows with num_items, do not determine c. It is then 1: work grows
    in proportion to the length of the vectors.
    """
    rows = _large(rows)
    num, dim, value = (np.log([row[n] for row in rows]) for n in ("num_items", "dim", name))
    columns = np.stack([np.ones(len(rows)), num, dim], 1)
    if np.linalg.matrix_rank(columns) == 3:
        return np.linalg.lstsq(columns, value, rcond=None)[0]
    return np.append(np.linalg.lstsq(columns[:, :2], value - dim, rcond=None)[0], 1.0)


def _large(rows: Sequence[dict]) -> list[dict]:
    largest = max(row["num_items"] for row in rows)
    return [row for row in rows if row["num_items"] >= LEAST_SHARE * largest]


def _parts(num_items: int, dim: int) -> list[float]:
    """What the bytes of a vector are made of: its values or codes of each; links, numbers and codes
    of fixed width; its share of sqrt(n) centres, and of tables as large as 256 vectors."""
    return [dim, 1.0, dim / np.sqrt(num_items), 256 * dim / num_items]


def _at(coefficients: np.ndarray, num_items: int, dim: int) -> float:
    return float(np.exp(coefficients @ [1, np.log(num_items), np.log(dim)]))


def predict(rows: Sequence[dict], num_items: int, dim: int) -> Prediction:
    """The predicted cost of the kind of index that these rows measured.

    Args:
        rows: Measurements of one variant, at two sizes or more.
        num_items: Vectors.
        dim: Their length.

    Raises:
        ValueError: Rows of fewer than two sizes, or nothing to predict for.
    """
    sizes = {row["num_items"] for row in rows}
    if len(sizes) < 2:
        raise ValueError(f"a growth needs measurements at two sizes or more; got {sorted(sizes)}.")
    if num_items < 1 or dim < 1:
        raise ValueError(f"num_items and dim must be 1 or more; got {num_items} and {dim}.")
    largest = max(rows, key=lambda row: row["num_items"])
    parts = [_parts(row["num_items"], row["dim"]) for row in rows]
    each = nnls(np.array(parts), np.array([row["bytes_per_vector"] for row in rows]))[0]
    codes = [row["recall_of_codes"] for row in rows if "recall_of_codes" in row]
    has_build = all(row["build_cpu_s"] > 0 for row in _large(rows))
    return Prediction(
        variant=largest["variant"],
        num_items=num_items,
        dim=dim,
        index_bytes=num_items * float(each @ _parts(num_items, dim)),
        vector_bytes=vector_bytes(num_items, dim) + num_items * KEY_BYTES,
        build_s=_at(fit(rows, "build_cpu_s"), num_items, dim) if has_build else 0.0,
        p50_ms=_at(fit(rows, "p50_ms"), num_items, dim),
        recall=largest["recall"],
        times_largest=num_items / largest["num_items"],
        recall_of_codes=min(codes, default=None),
    )


def error_at_largest(rows: Sequence[dict]) -> dict[str, float]:
    """Relative error at the largest size, predicted by a fit without it: predicted / measured - 1.

    Raises:
        ValueError: Fewer than three sizes.
    """
    largest = max(rows, key=lambda row: row["num_items"])
    others = [row for row in rows if row["num_items"] < largest["num_items"]]
    found = predict(others, largest["num_items"], largest["dim"])
    measured = {
        "bytes": largest["bytes_per_vector"] * largest["num_items"],
        "build_s": largest["build_cpu_s"],
        "p50_ms": largest["p50_ms"],
    }
    predicted = {"bytes": found.index_bytes, "build_s": found.build_s, "p50_ms": found.p50_ms}
    return {name: predicted[name] / value - 1 for name, value in measured.items() if value}


def plan(num_items: int, dim: int, rows: Sequence[dict] | None = None) -> list[Prediction]:
    """The predicted cost of each kind of index, the fastest search first.

    Args:
        num_items: Vectors.
        dim: Their length.
        rows: Measurements; this project's where None.
    """
    rows = measurements() if rows is None else rows
    found = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        measured = [row for row in rows if row["variant"] == variant]
        if len({row["num_items"] for row in measured}) > 1:
            found.append(predict(measured, num_items, dim))
    return sorted(found, key=lambda prediction: prediction.p50_ms)


def suggest(
    num_items: int,
    dim: int,
    memory: float,
    updates: float = 0.0,
    rows: Sequence[dict] | None = None,
    cores: int = 2,
) -> Suggestion:
    """Which index to take: the fastest that fits into memory and can be rebuilt often enough.

    Exact search is preferred if it answers within a millisecond. A graph cannot delete vectors, so
    it is rebuilt when a share of `MAX_TOMBSTONES` of them was replaced. Other indexes are rebuilt
    once a day. A build may take at most half of the time until the next one.

    Args:
        num_items: Vectors.
        dim: Their length.
        memory: Bytes available. With codes the float32 vectors may stay on disk.
        updates: Items added, replaced or removed a day.
        rows: Measurements; this project's where None.
        cores: Number of cores that build.

    Raises:
        ValueError: Nothing fits: the message has each index with what it would need.
    """
    fits, why = [], []
    for cost in plan(num_items, dim, rows):
        graph = cost.variant.startswith("hnsw")
        until = DAY * (MAX_TOMBSTONES * num_items / updates if graph and updates else 1)
        line = (
            f"{cost.variant}: {cost.resident_bytes / 2**30:.1f} GiB, {cost.p50_ms:.2f} ms a search"
            f", {cost.build_s / cores / 60:.0f} min to build"
        )
        if cost.variant in CODED:
            line += (
                f", beside {cost.vector_bytes / 1e9:,.0f} GB of vectors, on disk, to refine with"
            )
            if cost.recall_of_codes is not None:
                line += (
                    f" (codes alone find as little as {cost.recall_of_codes:.2f} where measured)"
                )
        if cost.resident_bytes > memory:
            why.append(f"{line}; does not fit into {memory / 2**30:.1f} GiB")
        elif updates and 2 * cost.build_s / cores > until:
            why.append(f"{line}; {updates:,.0f} changes a day wear it out in {until / 60:.0f} min")
        else:
            fits.append((cost, line))
            why.append(line)
    if not fits:
        raise ValueError(
            f"no index of {num_items:,} x {dim} fits: " + "; ".join(why) + ". More memory, shorter "
            "vectors, or a cluster (milvus with a server address) would."
        )
    exact = [(cost, line) for cost, line in fits if cost.variant in ("exact", "flat")]
    chosen, line = exact[0] if exact and exact[0][0].p50_ms <= EXACT_MS else fits[0]
    backend, _, storage = chosen.variant.partition("-")
    parameters: dict = {"storage": storage} if backend == "hnsw" and storage else {}
    if chosen.variant == "scann-soar":
        parameters = {"soar": True}
    reason = "the quickest that fits"
    if chosen.variant in ("exact", "flat"):
        reason = f"exact within {EXACT_MS:.0f} ms: nothing to tune or to build"
    if backend == "ivf_pq" and updates:
        backend, reason = "tiered", f"{reason}; an HNSW of fresh items in front of it"
    why.remove(line)
    return Suggestion(backend, parameters, [f"{line}; {reason}", *why])
