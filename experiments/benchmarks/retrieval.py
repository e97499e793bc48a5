"""Recall against speed, size and build time of every index, at any size.

    python experiments/benchmarks/retrieval.py --bundle=W/bundle --num_items=10000,100000,1000000 \
        --backends=exact,flat,ivf,hnsw,ivf_pq,scann --cache=C --output=out.json
    python experiments/benchmarks/retrieval.py --vectors=glove.hdf5 --queries=glove.hdf5 \
        --metric=cosine --backends=hnsw,scann --cache=C --output=out.json

Items are the bundle's item vectors with noise (--noise, in median distances to the nearest other
item), or Gaussian clusters (--noise=gaussian), or your own files. Queries are the bundle's sample
queries. An index is tuned on 200 of the queries to find --recall_target of the exact top k, and
measured on the others. There is a row for each effort. The tuned effort is also measured with the
exact top 500 of each query excluded, and with filters that allow the 2% of the items nearest to the
query or farthest from it. Searches run on one thread and one core, builds on all cores.

The file has `rows`, one for each setting. The rows of an index follow each other. The first of them
also has the cost of the build, and where all of them come from. A table is printed, and a plot is
written beside the file. After an interruption the same command continues; built indexes stay in
--cache. Each index has its own process, so that its memory can be measured.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib

import numpy as np
from absl import app, flags, logging

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
import threadpoolctl  # isort: skip
from retrieval_figures import filtered, measured  # isort: skip  (these three beside this script)
from retrieval_plot import plot  # isort: skip
from retrieval_unit import VARIANTS, Unit, built, exact_answers, make_set, peak_gib  # isort: skip
from twotower.bundle.provenance import provenance, write_result
from twotower.ragged import Ragged
from twotower.retrieval.tuning import tune

TUNING_QUERIES = 200
EXCLUDED = 500
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


def rows_of(unit: Unit) -> list[dict]:
    """Builds and measures one index; in a process of its own."""
    data = make_set(unit)
    dim = data.vectors.shape[1]
    folder = pathlib.Path(unit.cache) / f"{unit.set_name}-{len(data.vectors)}x{dim}"
    folder.mkdir(parents=True, exist_ok=True)
    best = exact_answers(unit, data, folder, EXCLUDED + unit.k)
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
