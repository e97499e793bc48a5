"""Compares ways to apply a stream of changes to an index.

    python experiments/benchmarks/index_updates.py --bundle=W/bundle --num_items=100000 \
        --strategy=incremental,full,dual --backend=ivf,hnsw --output=out.json
    python experiments/benchmarks/index_updates.py --bundle=W/bundle --num_items=100000 \
        --strategy=growth,wear --backend=ivf,ivf_pq,hnsw,scann --output=out.json

Items are a bundle's, or as many as --num_items with noise around them; queries are its sample
queries. An index is tuned once, on the first build, and keeps its parameters.

`incremental`, `full` and `dual` apply --rounds of changes while a thread searches without a pause.
In each round --change_share of the items are new, as many are replaced, and as many removed.
`incremental` adds them to the buffer and then calls `absorb`, for which searches wait. `full`
builds a new index, and no change is visible before it is ready. `dual` builds a second index while
the first one (a LiveIndex with its log) takes changes and answers, and then swaps the two,
replaying the later changes. `stall_ms` is the longest search during an update, `visible_s` the time
until a search finds a changed item.

`growth` adds --growth of new items to a first build. It compares absorbing them (`absorbed`) with a
rebuild at the same parameters (`rebuilt`) and a rebuild with new sizes and efforts (`retuned`),
with and without drift. `wear` removes items, or fills the buffer, without absorbing: it measures
the costs that `store.MAX_TOMBSTONES` and `MAX_BUFFER` limit.

With drift (--drift) whole neighbourhoods are missing in the first build, and new items come only
from these. `nearest_old` is the median score of a new item with the most similar old one. Recall is
against an exact search over the live items. `scored` counts the vectors that a FAISS index compares
with a query, which does not depend on the load of the machine. Single searches run on one thread,
updates on all cores. After an interruption the same command continues. The status is 1 if a change
was lost.
"""

import json
import pathlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from absl import app, flags, logging

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
import threadpoolctl  # isort: skip
import vector_sets  # isort: skip  (these four beside this script)
from update_catalogue import Catalogue, divided  # isort: skip
from update_figures import measured  # isort: skip
from update_ways import WAYS, Reader, mib, num_wrong, rebuilt, stream  # isort: skip
from twotower.bundle.bundle import Bundle
from twotower.bundle.provenance import provenance, write_result
from twotower.live.log import WriteAheadLog
from twotower.retrieval import build
from twotower.retrieval.base import Retriever

STRATEGIES = (*WAYS, "growth", "wear")
BACKENDS = ("ivf", "ivf_pq", "hnsw", "scann")
TUNING_QUERIES = 200

FLAGS = flags.FLAGS
script.DEFINE_path("bundle", None, "Bundle whose item vectors and queries to take.", required=True)
flags.DEFINE_list("strategy", ["incremental"], f"Of {', '.join(STRATEGIES)}.")
flags.DEFINE_list("backend", ["ivf"], f"Of {', '.join(BACKENDS)}.")
flags.DEFINE_integer("num_items", 0, "Items, new ones included; 0 for the bundle's own.")
flags.DEFINE_float("noise", 0.5, "Noise of further items, in distances to the nearest other item.")
flags.DEFINE_integer("rounds", 5, "Rounds of changes.", lower_bound=1)
flags.DEFINE_float("change_share", 0.02, "Share new, replaced and removed, each, a round.")
flags.DEFINE_bool("drift", False, "New items of the rounds come from neighbourhoods held out.")
flags.DEFINE_list(
    "growth", "0,.05,.1,.2,.5,1".split(","), "New items, in those of the first build."
)
flags.DEFINE_list("tombstones", "0,.01,.02,.05,.1,.2,.4".split(","), "Shares removed, for wear.")
flags.DEFINE_list("buffers", "0,1000,2000,5000,10000,20000,50000".split(","), "Added, for wear.")
flags.DEFINE_integer("k", 100, "Answers a query.", lower_bound=1)
flags.DEFINE_float("recall_target", 0.985, "Recall to tune for.", lower_bound=0, upper_bound=1)
flags.DEFINE_integer("searches", 1000, "Single searches to time an index by.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.", required=True)

# What tells one run of a strategy from another, besides bundle and backend.
COMMON = ("num_items", "noise", "k", "recall_target", "searches")
SETTINGS = dict.fromkeys(WAYS, ("rounds", "change_share", "drift"))
SETTINGS |= {"growth": ("growth",), "wear": ("tombstones", "buffers")}


def numpy_on_one_thread():
    """Limits NumPy to one thread within its `with` block. FAISS has its own BLAS, which a build may
    use.

    With two threads, each search of the buffer waited for cores that a build beside it had taken.
    """
    every = threadpoolctl.threadpool_info()
    paths = [pool["filepath"] for pool in every if "numpy" in pool["filepath"]]
    return threadpoolctl.ThreadpoolController().select(filepath=paths).limit(limits=1)


def catalogue_of(bundle: Bundle, num_items: int, later: float, drift: bool) -> Catalogue:
    """A catalogue of `num_items` like a bundle's, or of the bundle's own for 0. `later` is how many
    later items there are for each item of the first build."""
    vectors, queries = np.asarray(bundle.vectors), np.asarray(bundle.sample_queries)
    if num_items:
        vectors = vector_sets.enlarged(vectors, num_items, FLAGS.noise)
    first, rest = divided(vectors, round(len(vectors) / (1 + later)), drift)
    num_tuning = min(TUNING_QUERIES, len(queries) // 2)
    tuning, queries, metric = queries[:num_tuning], queries[num_tuning:], bundle.manifest["metric"]
    return Catalogue(first, rest, tuning, queries, metric, FLAGS.k, FLAGS.recall_target)


def efforts(index: Retriever) -> dict:
    """The search effort that an index is tuned to."""
    return {name: getattr(index.config, name) for name in index.efforts(FLAGS.k)}


def rounds(bundle: Bundle, strategy: str, backend: str) -> Iterator[dict]:
    """A row for each round of changes, and one for the first build as round 0."""
    share = 2 * FLAGS.change_share * FLAGS.rounds
    catalogue = catalogue_of(bundle, FLAGS.num_items, share, FLAGS.drift)
    num, queries = len(catalogue.first), catalogue.queries
    changes = [None, *stream(num, catalogue.later, FLAGS.rounds)]
    keys, vectors = np.arange(num), catalogue.first
    with tempfile.TemporaryDirectory() as folder, WriteAheadLog(f"{folder}/log") as log:
        index = catalogue.tuned(backend, keys, vectors)
        way = WAYS[strategy](index, log, catalogue.tuning)
        for number, change in enumerate(changes):
            row = {"drift": FLAGS.drift, "round": number, "num_items": len(keys)}
            if change:
                keys, vectors = change.applied_to(keys, vectors)
                with Reader(way, queries, FLAGS.k) as reader:
                    started = time.perf_counter()
                    updated = way.update(change)
                    seconds = time.perf_counter() - started
                row |= {
                    "update_s": seconds,
                    "stall_ms": 1e3 * max(reader.seconds),
                    "p50_updating_ms": 1e3 * float(np.median(reader.seconds)),
                    "searches_updating": len(reader.seconds),
                    **updated,
                    "lost": num_wrong(way.index, keys, vectors),
                }
            exact = {"": catalogue.exact(keys, vectors)}
            result = measured({"": way.search}, exact, queries, num, FLAGS.k, FLAGS.searches)[""]
            yield row | result | {"memory_mib": mib(way.index), "efforts": efforts(way.index)}


def growth(bundle: Bundle, strategy: str, backend: str) -> Iterator[dict]:
    """For each share of new items, with and without drift: absorbed, rebuilt, retuned."""
    shares = sorted(map(float, FLAGS.growth))
    for drift in (False, True):
        catalogue = catalogue_of(bundle, FLAGS.num_items, shares[-1], drift)
        num, later, done, absorb_s = len(catalogue.first), catalogue.later, 0, 0.0
        index = catalogue.tuned(backend, np.arange(num), catalogue.first)
        config = build.IndexConfig("flat", catalogue.metric)
        old = build.build(config, np.arange(num), catalogue.first)
        nearest = float(np.median(old.search(later[:1000], 1).scores)) if len(later) else None
        for share in shares:
            until = min(round(share * num), len(later))
            started = time.perf_counter()
            if until > done:
                index.add(num + np.arange(done, until), later[done:until])
                index.absorb()
            done, absorb_s = until, absorb_s + time.perf_counter() - started
            keys, vectors = index.live()
            started = time.perf_counter()
            ways, seconds = {"absorbed": index}, {"absorbed": absorb_s}
            for name, make in (
                ("rebuilt", lambda *live, index=index: rebuilt(index, *live)),
                ("retuned", lambda *live, c=catalogue: c.tuned(backend, *live)),
            ):
                started = time.perf_counter()
                ways[name] = make(keys, vectors)
                seconds[name] = time.perf_counter() - started
            searches = {name: way.search for name, way in ways.items()}
            exact = dict.fromkeys(ways, catalogue.exact(keys, vectors))
            results = measured(searches, exact, catalogue.queries, num, FLAGS.k, FLAGS.searches)
            for name, result in results.items():
                row = {"drift": drift, "new_share": share, "way": name, "num_items": len(keys)}
                row |= result | {"update_s": seconds[name], "nearest_old": nearest}
                yield row | {"efforts": efforts(ways[name])}


def wear(bundle: Bundle, strategy: str, backend: str) -> Iterator[dict]:
    """A row for each share of tombstones and each length of the buffer."""
    num, most = FLAGS.num_items or len(bundle.vectors), max(map(int, FLAGS.buffers))
    catalogue = catalogue_of(bundle, num + most, most / num, drift=False)
    index = catalogue.tuned(backend, np.arange(num), catalogue.first)
    gone = np.random.default_rng(1).permutation(num)
    states = {("untouched", 0): index}
    for share in map(float, FLAGS.tombstones):
        states["tombstones", share] = state = index.sibling()
        state.remove(gone[: round(share * num)])
    for added in map(int, FLAGS.buffers):
        states["buffer", added] = state = index.sibling()
        state.add(num + np.arange(added), catalogue.later[:added])
    exact = {name: catalogue.exact(*state.live()) for name, state in states.items()}
    searches = {name: state.search for name, state in states.items()}
    results = measured(searches, exact, catalogue.queries, num, FLAGS.k, FLAGS.searches)
    untouched = results["untouched", 0]
    for (kind, level), result in results.items():
        state = states[kind, level]
        row = {"wear": kind, "level": level, "num_items": len(state)} | result
        for name in ("p50", "p99"):
            row[f"{name}_ratio"] = result[f"{name}_ms"] / untouched[f"{name}_ms"]
        yield row | {"memory_mib": mib(state), "needs_rebuild": state.needs_rebuild}


def line(row: dict) -> str:
    """A row as printed: names beside values, empty ones left out."""
    cells = []
    for name, value in row.items():
        if value is not None and value != "":
            cells.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(cells)


def check_flags() -> None:
    """Raises UsageError for values that fit no strategy or backend."""
    for flag, known in (("strategy", STRATEGIES), ("backend", BACKENDS)):
        unknown = set(FLAGS[flag].value) - set(known)
        if unknown or not FLAGS[flag].value:
            raise app.UsageError(f"--{flag}: {sorted(unknown)} are none of {list(known)}.")
    for flag, kind, most in (
        ("growth", float, 100),
        ("tombstones", float, 0.9),
        ("buffers", int, 10**7),
    ):
        values = FLAGS[flag].value
        try:
            fits = bool(values) and all(0 <= kind(value) <= most for value in values)
        except ValueError:
            fits = False
        if not fits:
            raise app.UsageError(f"--{flag}: expected {kind.__name__}s, 0 to {most}; got {values}.")
    if not 0 < FLAGS.change_share <= 0.5:
        raise app.UsageError(
            f"--change_share: expected over 0, .5 at most; got {FLAGS.change_share}."
        )


def main():
    check_flags()
    bundle, path = Bundle(FLAGS.bundle), pathlib.Path(FLAGS.output)
    result = json.loads(path.read_text()) if path.exists() else {"rows": []}
    done = [row["unit"] for row in result["rows"] if "unit" in row]
    measure = dict.fromkeys(WAYS, rounds) | {"growth": growth, "wear": wear}
    for strategy, backend in [(s, b) for s in FLAGS.strategy for b in FLAGS.backend]:
        settings = {name: FLAGS[name].value for name in (*COMMON, *SETTINGS[strategy])}
        unit = [bundle.model_version, strategy, backend, settings]
        if unit in done:
            continue
        logging.info("%s", unit)
        common = {"strategy": strategy, "backend": backend}
        about = {**common, "dim": bundle.manifest["dim"], "k": FLAGS.k}
        rows = []
        with numpy_on_one_thread():
            for row in measure[strategy](bundle, strategy, backend):
                print(line(common | row), flush=True)
                rows.append(about | {"noise": FLAGS.noise} | row)
        origin = provenance()
        # The rows of a unit follow each other; the first says where all of them come from.
        rows[0] = {"unit": unit, **rows[0]}
        rows[0] |= {name: origin[name] for name in ("command", "commit")}
        result = {"rows": result["rows"] + rows} | origin
        write_result(path, result)
    lost = [row for row in result["rows"] if row.get("lost")]
    if lost:
        kind = " ".join(lost[0][name] for name in ("strategy", "backend"))
        raise SystemExit(f"{lost[0]['lost']} items wrong after an update: {kind}.")


if __name__ == "__main__":
    script.run(main)
