"""What the retrieval interface costs beyond its library, at the same parameters and vectors.

    python experiments/benchmarks/retrieval.py --bundle=W/bundle --num_items=1000000 --noise=0.5 \
        --backends=exact,flat,ivf,hnsw,hnsw-fp16,hnsw-sq8,ivf_pq,scann --cache=C --output=out.json
    python experiments/benchmarks/overhead.py --cache=C/0.5-1000000x128 --bundle=W/bundle \
        --output=overhead.json

Takes the indexes that the first command left in its cache, tunes each for --recall_target, and runs
the same queries in turn through `Retriever.search` and through the library: numpy's product and
partition, `faiss.knn`, `index.search` (over codes `IndexRefineFlat`, which scores again as the
interface does), ScaNN's `search` and `search_batched`. One thread, one core; the order changes with
every round. The figures are medians of the differences of pairs, so that drift of the machine
affects both sides.
"""

import os
import pathlib
import time
from collections.abc import Callable

import faiss
import numpy as np
from absl import app, flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
import threadpoolctl

from twotower.bundle.provenance import provenance, write_result
from twotower.retrieval import build
from twotower.retrieval.tuning import tune

BATCHES = {1: 1000, 100: 40}  # queries at a time -> rounds

FLAGS = flags.FLAGS
script.DEFINE_path("cache", None, "Folder of one set of vectors.", required=True)
script.DEFINE_path("bundle", None, "Bundle whose sample queries to ask.", required=True)
flags.DEFINE_integer("k", 100, "Answers a query.", lower_bound=1)
flags.DEFINE_float("recall_target", 0.98, "Recall to tune for.", lower_bound=0, upper_bound=1)
flags.DEFINE_list("variants", None, "Which of the indexes in the cache; all by default.")
flags.DEFINE_integer("core", 0, "Core to run on, where the system can pin; -1 for any.")
script.DEFINE_path("output", None, "JSON file to write.")


def raw_search(index, k: int) -> Callable:
    """The library's own search: queries `[num_queries, dim]` -> its answer."""
    vectors, config = index.state()["vectors"], index.config
    if index.backend == "exact":

        def by_numpy(queries):
            scores = queries @ vectors.T
            top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            best = np.take_along_axis(scores, top, 1)
            order = np.argsort(-best, axis=1)
            return np.take_along_axis(top, order, 1), np.take_along_axis(best, order, 1)

        return by_numpy
    if index.backend == "flat":
        kind = faiss.METRIC_INNER_PRODUCT
        return lambda queries: faiss.knn(queries, vectors, k, metric=kind)
    if index.backend == "scann":
        searcher, leaves = index._searcher, config.num_leaves_to_search
        reorder = config.num_reordering_candidates

        def by_scann(queries):
            if len(queries) == 1:
                return searcher.search(queries[0], k, reorder, leaves)
            return searcher.search_batched(queries, k, reorder, leaves, False, 0)

        return by_scann
    library = index._index
    if not index.is_coded:
        parameters = index._parameters(config, k)
        return lambda queries: library.search(queries, k, params=parameters)
    flat = faiss.IndexFlatIP(index.dim)
    flat.add(vectors)
    refined = faiss.IndexRefine(library, flat)
    parameters = faiss.IndexRefineSearchParameters(
        k_factor=config.refine, base_index_params=index._parameters(config, k * config.refine)
    )

    def by_refine(queries):
        return refined.search(queries, k, params=parameters)

    by_refine.keep = flat  # IndexRefine only points to it
    return by_refine


def compare(index, queries: np.ndarray, k: int, size: int, rounds: int) -> dict:
    """Seconds of the interface and of the library, in pairs, for batches of `size`."""
    raw, pairs = raw_search(index, k), []
    calls = {"interface": lambda batch: index.search(batch, k), "library": raw}
    for turn in range(rounds + 2):
        start = turn * size % (len(queries) - size + 1)
        batch = np.ascontiguousarray(queries[start : start + size])
        times = {}
        for name in sorted(calls, reverse=bool(turn % 2)):
            for call in range(2):  # the first of two finds the caches as the other left them
                begun = time.perf_counter()
                calls[name](batch)
                if call:
                    times[name] = time.perf_counter() - begun
        pairs.append((times["interface"], times["library"]))
    interface, library = np.array(pairs[2:]).T * 1e6
    more = float(np.median(interface - library))
    return {
        "batch": size,
        "parameters": {name: getattr(index.config, name) for name in index.efforts(k)},
        "interface_us": float(np.median(interface)),
        "library_us": float(np.median(library)),
        "more_us": more,
        "more_share": more / float(np.median(library)),
        "rounds": rounds,
    }


def main():
    queries = np.load(pathlib.Path(FLAGS.bundle) / "items" / "sample_queries.npy")
    if FLAGS.core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {FLAGS.core})
    found = sorted(path.parent for path in pathlib.Path(FLAGS.cache).glob("*/build.json"))
    rows = []
    for place in found:
        variant = place.name.rpartition("-")[0]
        if FLAGS.variants and variant not in FLAGS.variants:
            continue
        index = build.load(place / "index")
        with threadpoolctl.threadpool_limits(1):
            if index.efforts(FLAGS.k):
                tune(index, queries[::2], FLAGS.k, FLAGS.recall_target)
            for size, rounds in BATCHES.items():
                if index.is_exact:
                    rounds = max(5, rounds // 20)
                row = compare(index, queries, FLAGS.k, size, rounds)
                rows.append({"variant": variant, "num_items": len(index), "dim": index.dim, **row})
                print(
                    f"{variant:10s} batch {size:3d}  interface {row['interface_us']:10,.0f} us  "
                    f"library {row['library_us']:10,.0f} us  more {row['more_us']:8,.0f} us "
                    f"({row['more_share']:+.1%})",
                    flush=True,
                )
    if not rows:
        raise app.UsageError(f"no index in {FLAGS.cache}: run retrieval.py first.")
    if FLAGS.output:
        write_result(FLAGS.output, {"k": FLAGS.k, "rows": rows, **provenance()})


if __name__ == "__main__":
    script.run(main)
