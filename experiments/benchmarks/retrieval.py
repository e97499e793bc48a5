"""Recall against speed, size and build time of every index, at any size.

    python experiments/benchmarks/retrieval.py --bundle=W/bundle --num_items=10000,100000,1000000 \
        --backends=exact,flat,ivf,hnsw,ivf_pq,scann --cache=C --output=out.json
    python experiments/benchmarks/retrieval.py --vectors=glove.hdf5 --queries=glove.hdf5 \
        --metric=cosine --backends=hnsw,scann --cache=C --output=out.json

Items are the bundle's item vectors with noise (--noise, in median distances to the nearest other
item), or Gaussian clusters (--noise=gaussian), or files of yours; queries are the bundle's sample
queries. An index is tuned on 200 of the queries to find --recall_target of the exact top k, and
everything is measured on the others: for each effort a row, and for the tuned one also with each
query's own exact top 500 excluded and with a 2% filter near the query and far from it. Searches
run on one thread and one core; builds take all.

The file has `rows`, one a setting. The rows of an index follow each other, and the first of them
also says what its build took and where all of them come from. A table is printed and a plot written
beside the file. Interrupted, the same command goes on; indexes built stay in
--cache. Each index has a process of its own, so that memory is its own, too.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import time

import numpy as np
import threadpoolctl
from absl import app, flags, logging

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
import vector_sets  # isort: skip  (beside this script)
from twotower.bundle.provenance import provenance, write_result
from twotower.ragged import Ragged
from twotower.retrieval import build
from twotower.retrieval.candidates import Candidates
from twotower.retrieval.tuning import recall_against, tune
from twotower.retrieval.vectors import KeyedVectors

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
TUNING_QUERIES = 200
EXCLUDED, FILTER_SHARE = 500, 0.02
SINGLES = 1200  # queries asked one at a time, for the tuned setting

FLAGS = flags.FLAGS
script.DEFINE_path("bundle", None, "Bundle whose item vectors and sample queries to take.")
flags.DEFINE_list("num_items", ["10000", "100000", "1000000"], "Sizes.")
flags.DEFINE_integer("dim", None, "Dimension of --noise=gaussian; a bundle's must be this.")
flags.DEFINE_list("noise", ["0.5", "2"], "Noise around a bundle's items; or 'gaussian'.")
script.DEFINE_path("vectors", None, ".npy, .fvecs or ann-benchmarks .hdf5; instead of --bundle.")
script.DEFINE_path("queries", None, "The same for the queries; for .hdf5 the file's test set.")
flags.DEFINE_enum("metric", "dot", ["dot", "cosine", "euclidean"], "Metric.")
flags.DEFINE_list("backends", ["exact", "flat", "ivf", "hnsw", "ivf_pq", "scann"], str([*VARIANTS]))
flags.DEFINE_integer("k", 100, "Answers a query.", lower_bound=1)
flags.DEFINE_float("recall_target", 0.98, "Recall to tune for.", lower_bound=0, upper_bound=1)
flags.DEFINE_integer("core", 0, "Core that searches run on, where the system can pin; -1: any.")
flags.DEFINE_bool("build_only", False, "Fill the cache and measure nothing.")
script.DEFINE_path("cache", "retrieval-cache", "Folder for vectors, exact answers and indexes.")
script.DEFINE_path("output", None, "JSON file to write.", required=True)


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


def exact_answers(unit: Unit, data: vector_sets.VectorSet, folder: pathlib.Path) -> Candidates:
    """The exact best EXCLUDED + k of every query."""
    width = min(EXCLUDED + unit.k, len(data.vectors))
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
        leaves = int(2 * np.sqrt(num))
        sizes = {"num_leaves": leaves, "num_leaves_to_search": max(1, leaves // 20)}
        parameters = sizes | {"num_reordering_candidates": min(num, 10 * unit.k)} | parameters
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
    row["peak_rss_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (place / "build.json").write_text(json.dumps(row, indent=1))
    return index, row


def quantiles(seconds: list[float]) -> dict:
    """Of single queries."""
    p50, p99 = 1e3 * np.quantile(seconds, [0.5, 0.99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def measured(index, queries, k: int, wanted, singles: int, exclude: Ragged | None = None) -> dict:
    """Recall, queries a second in batches of 100, and the latency of single queries.

    Args:
        index: Retriever.
        queries: `[num_queries, dim]`.
        k: Answers a query.
        wanted: The exact Candidates.
        singles: Queries to ask one at a time, round and round.
        exclude: As in `Retriever.search`, one row a query.
    """

    def ask(rows):
        return index.search(
            queries[rows], k, exclude and exclude.take(np.arange(len(queries))[rows])
        )

    batches = [slice(start, start + 100) for start in range(0, len(queries), 100)]
    rounds = []
    for _ in range(2):  # the better of two: the first may find cold caches
        begun = time.perf_counter()
        answer = Candidates.concat([ask(batch) for batch in batches])
        rounds.append(time.perf_counter() - begun)
    single = []
    for turn in range(singles):
        row = turn % len(queries)
        one, banned = queries[row : row + 1], exclude and exclude.take(np.array([row]))
        begun = time.perf_counter()
        index.search(one, k, banned)
        single.append(time.perf_counter() - begun)
    found = {f"recall@{k}": recall_against(wanted, answer), "qps": len(queries) / min(rounds)}
    return found | quantiles(single)


def filtered(index, data: vector_sets.VectorSet, queries, k: int, near: bool) -> dict:
    """Latency and recall with a filter of its own for each of 50 queries: the 2% of the items that
    lie nearest to it, or farthest from it."""
    oracle = KeyedVectors.checked(np.arange(len(data.vectors)), data.vectors, index.metric)
    size, found, wanted, seconds = int(FILTER_SHARE * len(oracle)), [], [], []
    asked = queries[:50]
    asked = KeyedVectors.checked(np.arange(len(asked)), asked, index.metric)  # as long as cosine's
    for query in asked.vectors[:, None]:
        scores = oracle.scores(query)[0]
        order = np.argpartition(-scores if near else scores, size)[:size]
        wanted.append(Candidates.rank(order[None], scores[None, order], k))
        begun = time.perf_counter()
        found.append(index.search(query, k, allow=order))
        seconds.append(time.perf_counter() - begun)
    recall = recall_against(Candidates.concat(wanted), Candidates.concat(found))
    return {f"recall@{k}": recall} | quantiles(seconds)


def rows_of(unit: Unit) -> list[dict]:
    """Builds and measures one index; in a process of its own."""
    data = make_set(unit)
    dim = data.vectors.shape[1]
    folder = pathlib.Path(unit.cache) / f"{unit.set_name}-{len(data.vectors)}x{dim}"
    folder.mkdir(parents=True, exist_ok=True)
    best = exact_answers(unit, data, folder)
    index, about = built(unit, data, folder)
    if unit.build_only:
        return []
    if unit.core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {unit.core})
    k, rows = min(unit.k, len(data.vectors)), []
    # In random order: those of a bundle stand in order of users.
    order = np.random.default_rng(0).permutation(len(data.queries))
    tuning, others = data.queries[order[:TUNING_QUERIES]], order[TUNING_QUERIES:]
    queries, best = data.queries[others], best.take(others)

    def add(result: dict, **entries) -> None:
        parameters = dataclasses.asdict(index.config)
        efforts = {name: parameters[name] for name in index.efforts(k)}
        rows.append(
            {
                "set": unit.set_name,
                "variant": unit.variant,
                "backend": index.backend,
                "metric": unit.metric,
                "parameters": efforts,
                "num_items": len(index),
                "dim": dim,
                "k": k,
                "tuned": False,
                "constraint": "",
                **result,
                "build_s": about["build_s"],
                "bytes_per_vector": about["bytes_per_vector"],
                **entries,
            }
        )

    with threadpoolctl.threadpool_limits(1):
        ladders = index.efforts(k)
        if ladders:
            tune(index, tuning, k, unit.recall_target)
        tuned = index.config
        for name in list(ladders)[-1:]:
            for value in ladders[name]:
                index.config = dataclasses.replace(tuned, **{name: value})
                add(measured(index, queries, k, best.head(k), 100))
                if rows[-1][f"recall@{k}"] > 0.9995 and value > getattr(tuned, name):
                    break
        index.config = tuned
        singles = SINGLES if ladders else 100
        add(measured(index, queries, k, best.head(k), singles), tuned=True)
        if getattr(index, "is_coded", False):
            index.config = dataclasses.replace(tuned, refine=1)
            add(measured(index, queries, k, best.head(k), 100), constraint="codes alone")
            index.config = tuned
        if ladders and len(index) >= 4 * (EXCLUDED + k):
            banned = Ragged.from_rows(best.keys[:, :EXCLUDED])
            behind = np.broadcast_to(np.arange(best.keys.shape[1]) >= EXCLUDED, best.keys.shape)
            result = measured(index, queries, k, best.mask(behind).head(k), len(queries), banned)
            add(result, tuned=True, constraint=f"top {EXCLUDED} excluded")
            for name, near in (("near", True), ("far", False)):
                add(filtered(index, data, queries, k, near), tuned=True, constraint=f"2% {name}")
    build_row = about | {"peak_rss_gib_searching": peak_gib()}
    return [rows[0] | {"unit": unit.identity, "build": build_row}, *rows[1:]]


def peak_gib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def units() -> list[Unit]:
    """All that the flags ask for, small ones first."""
    if not FLAGS.vectors and not FLAGS.bundle and FLAGS.noise != ["gaussian"]:
        raise app.UsageError("give --bundle, or --noise=gaussian, or --vectors and --queries.")
    if bool(FLAGS.vectors) != bool(FLAGS.queries):
        raise app.UsageError("--vectors and --queries go together.")
    unknown = set(FLAGS.backends) - VARIANTS.keys()
    if unknown:
        raise app.UsageError(f"--backends: {sorted(unknown)} are none of {[*VARIANTS]}.")
    sizes = [int(size) for size in FLAGS.num_items] if not FLAGS.vectors else [1 << 40]
    dim = FLAGS.dim
    if FLAGS.bundle and dim is None:
        items = pathlib.Path(FLAGS.bundle) / "items"
        dim = np.load(items / "vectors.npy", mmap_mode="r").shape[1]
    return [
        Unit(
            source=source,
            num_items=size,
            variant=variant,
            bundle=FLAGS.bundle,
            dim=dim,
            **{
                name: FLAGS[name].value
                for name in (
                    "metric",
                    "k",
                    "recall_target",
                    "core",
                    "build_only",
                    "queries",
                    "cache",
                )
            },
        )
        for size in sizes
        for source in ([FLAGS.vectors] if FLAGS.vectors else FLAGS.noise)
        for variant in FLAGS.backends
    ]


def main():
    path = pathlib.Path(FLAGS.output)
    result = json.loads(path.read_text()) if path.exists() else {"rows": []}
    done = [row["unit"] for row in result["rows"] if "unit" in row]
    spawn = multiprocessing.get_context("spawn")
    for unit in units():
        if unit.identity in done:
            continue
        logging.info("%s", unit.identity)
        # A process each; what it took from the machine goes with it.
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            rows = pool.submit(rows_of, unit).result()
        origin = provenance()
        if rows:
            rows[0] |= {name: origin[name] for name in ("command", "commit")}
        result = {"rows": result["rows"] + rows} | origin
        write_result(path, result)
        for row in rows:
            if row["tuned"]:
                print(line(row), flush=True)
    if result["rows"]:
        plot(result["rows"], path.with_suffix(".png"))


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Recall against queries a second, a picture for each set and size of the largest dimension."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dim = max(row["dim"] for row in rows)
    some = [row for row in rows if row["dim"] == dim and not row["constraint"] and "qps" in row]
    largest = max(row["num_items"] for row in some)
    some = [row for row in some if row["num_items"] == largest]
    sets = list(dict.fromkeys(row["set"] for row in some))
    figure, places = pyplot.subplots(
        1, len(sets), figsize=(5 * len(sets), 4), sharey=True, squeeze=False
    )
    colours = {name: f"C{number}" for number, name in enumerate(VARIANTS)}
    for place, name in zip(places[0], sets):
        for variant in dict.fromkeys(row["variant"] for row in some):
            own = [r for r in some if (r["variant"], r["set"]) == (variant, name)]
            recall = f"recall@{own[0]['k']}" if own else ""
            curve = sorted((row[recall], row["qps"]) for row in own if not row["tuned"])
            if curve:
                place.plot(*zip(*curve), ".-", color=colours[variant], label=variant)
            for row in own:
                if row["tuned"]:
                    label = None if curve else variant
                    place.plot(row[recall], row["qps"], "o", color=colours[variant], label=label)
        title = f"noise {name}" if name[0].isdigit() else name
        place.set(yscale="log", xlim=(0.6, 1.005), xlabel=recall, title=title)
        place.grid(alpha=0.3)
    places[0][0].set(ylabel="queries a second, one thread")
    places[0][-1].legend(fontsize=8)
    figure.suptitle(f"{largest:,} vectors x {dim}; dots: tuned")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def line(row: dict) -> str:
    """A row as printed."""
    recall = row[f"recall@{row['k']}"]
    effort = " ".join(f"{k}={v}" for k, v in row["parameters"].items())
    qps = f"{row['qps']:9,.0f}/s" if "qps" in row else " " * 11
    return (
        f"{row['set']:>9s} {row['num_items']:>9,d} x {row['dim']:<3d} {row['variant']:10s} "
        f"recall {recall:.4f}  {qps}  p50 {row['p50_ms']:7.2f} ms  p99 {row['p99_ms']:7.2f} ms  "
        f"build {row['build_s']:7.1f} s  {row['bytes_per_vector']:6.1f} B  "
        f"{row['constraint']:17s} {effort}"
    )


if __name__ == "__main__":
    script.run(main)
