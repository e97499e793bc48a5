"""Two trainings exchanged under load, and what a pair of two trainings would cost.

    python experiments/benchmarks/swap.py --bundle=A/bundle --other_bundle=B/bundle \
        --data_dir=ml-1m --index=hnsw --output=out.json
    python experiments/benchmarks/swap.py --bundle=A/bundle --other_bundle=B/bundle \
        --data_dir=ml-1m --mismatch --output=out.json

Threads send one request after another to a LiveIndex: first without exchanges, then while two
loaded pairs are exchanged every --every seconds, then while the other bundle is read from disk,
checked and exchanged every --load_every seconds. The answers of each training to each request are
computed before. So an answer of a tower and an index of two trainings is noticed, whatever training
it names. The script ends with status 1 if there is one, or an error. TensorFlow, numpy and FAISS
get one thread each, so each thread of the load runs one request. Nothing is excluded from the
answers.

With --identity the query tower is a table of the bundle's sample queries, so that neither
TensorFlow nor data is needed. --mismatch asks the validation part instead: recall of each tower on
each index, and of popularity.
"""

import os

# ruff: noqa: E402
# Read when numpy and FAISS are imported.
for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from absl import app, flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.bundle import Bundle
from twotower.bundle.provenance import provenance, write_result
from twotower.commands.judging import dataset_of
from twotower.data import splits
from twotower.data.inputs import QueryInputs
from twotower.evaluation import baselines
from twotower.evaluation.evaluate import evaluate
from twotower.live.index import Answer, LiveIndex
from twotower.live.log import WriteAheadLog
from twotower.live.pair import Checks, Pair

PROBES = 32  # requests that a swap checks a pair with
METRIC = "recall_micro@100"

FLAGS = flags.FLAGS
script.DEFINE_path("bundle", None, "Folder of the bundle that answers first.", required=True)
script.DEFINE_path("other_bundle", None, "Folder of another training's.", required=True)
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_string("index", "exact", "exact, or an index that both bundles have.")
flags.DEFINE_bool("identity", False, "Take sample queries for what the query towers answer.")
flags.DEFINE_bool("mismatch", False, "Recall of mixed pairs, instead of exchanges.")
flags.DEFINE_integer("threads", 4, "Threads that ask.", lower_bound=1)
flags.DEFINE_float("pause_ms", 0, "Time between a thread's requests.", lower_bound=0)
flags.DEFINE_float("seconds", 60, "Length of each phase.", lower_bound=0.1)
flags.DEFINE_float("every", 1, "Seconds between exchanges.", lower_bound=0.01)
flags.DEFINE_float("load_every", 10, "Seconds between loads from disk; 0: none.", lower_bound=0)
flags.DEFINE_integer("requests", 200, "Different requests.", lower_bound=1)
flags.DEFINE_integer("k", 10, "Answers a request.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.", required=True)


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests whose right answers are known.

    Attributes:
        inputs: Of the query towers, a batch of one each.
        expected: Training -> keys `[num_requests, k]`, best first.
    """

    inputs: Sequence[Mapping[str, np.ndarray]]
    expected: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, inputs: Sequence[Mapping], one: Pair, other: Pair, k: int) -> "Requests":
        """Those of `inputs` that tell all four pairs of tower and index apart.

        Raises:
            ValueError: There are fewer than half of them, as with two bundles of one training.
        """

        def answers(tower: Pair, index: Pair) -> np.ndarray:
            found = [index.retriever.search(tower.query_tower(each), k) for each in inputs]
            return np.concatenate([each.keys for each in found])

        answered = [answers(tower, index) for tower in (one, other) for index in (one, other)]
        apart = np.ones(len(inputs), bool)
        for at, keys in enumerate(answered):
            for keys_there in answered[:at]:
                apart &= (keys != keys_there).any(1)
        if apart.mean() < 0.5 or one.model_version == other.model_version:
            raise ValueError(
                f"only {apart.sum()} of {len(inputs)} requests tell a mixed pair from "
                f"{one.model_version!r} and {other.model_version!r}: take bundles of two trainings."
            )
        expected = {one.model_version: answered[0][apart], other.model_version: answered[3][apart]}
        return cls([inputs[row] for row in np.flatnonzero(apart)], expected)

    def is_right(self, number: int, answer: Answer) -> bool:
        """Whether the training that the answer names has answered it alone."""
        found = answer.candidates.keys[0]
        return np.array_equal(found, self.expected[answer.model_version][number])


class Load:
    """Threads that ask requests and judge the answers, inside its `with` block.

    Attributes:
        seconds: Of each search.
        mixed: Numbers of the requests that got an answer of neither training.
        errors: What searches raised.
    """

    def __init__(self, live: LiveIndex, requests: Requests) -> None:
        self.seconds: list[float] = []
        self.mixed: list[int] = []
        self.errors: list[str] = []
        self._live, self._requests, self._stop = live, requests, threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(seed,)) for seed in range(FLAGS.threads)
        ]

    def _ask(self, seed: int) -> None:
        rng, requests = np.random.default_rng(seed), self._requests
        while not self._stop.is_set():
            number = int(rng.integers(len(requests.inputs)))
            started = time.perf_counter()
            try:
                answer = self._live.search(requests.inputs[number], FLAGS.k)
                self.seconds.append(time.perf_counter() - started)
                if not requests.is_right(number, answer):
                    self.mixed.append(number)
            except Exception as error:  # counted: no request may fail
                self.errors.append(repr(error))
            if FLAGS.pause_ms:
                time.sleep(FLAGS.pause_ms / 1e3)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def exchange(live: LiveIndex, make: Callable[[str], Pair], every: float) -> list[tuple]:
    """Exchanges pairs for --seconds: (seconds to make one, seconds to swap it in) of each.

    Args:
        live: Under load.
        make: Gives the pair of the training that is not the one named.
        every: Seconds from one exchange to the next; 0 for none.
    """
    begun, took = time.perf_counter(), []
    while every and len(took) * every < FLAGS.seconds:
        time.sleep(max(0, begun + len(took) * every - time.perf_counter()))
        started = time.perf_counter()
        pair = make(live.pair.model_version)
        made = time.perf_counter()
        live.swap(pair)
        took.append((made - started, time.perf_counter() - made))
        if time.perf_counter() - begun > FLAGS.seconds:
            break
    time.sleep(max(0, begun + FLAGS.seconds - time.perf_counter()))
    return took


def load_pair(directory: str) -> Pair:
    """A pair from disk, ready to answer."""
    bundle = Bundle(directory)
    if not FLAGS.identity:
        return Pair.from_bundle(bundle, FLAGS.index)
    table, version = np.array(bundle.sample_queries), bundle.model_version
    retriever = bundle.retriever(FLAGS.index)
    return Pair(lambda inputs: table[inputs["request"]], retriever, version, version)


def inputs_of(bundles: Sequence[Bundle]) -> tuple[list[dict], dict]:
    """Up to --requests inputs of the query towers, a batch of one each; and a batch of PROBES."""
    if FLAGS.identity:
        num = min(FLAGS.requests, *(len(bundle.sample_queries) for bundle in bundles))
        return [{"request": np.array([n])} for n in range(num)], {
            "request": np.arange(num)[:PROBES]
        }
    manifest = bundles[0].manifest
    dataset = dataset_of(bundles[0], FLAGS.data_dir)
    split = splits.make_split(dataset, manifest["protocol"], "validation", manifest["split_seed"])
    raw = QueryInputs(dataset, [spec["name"] for spec in manifest["query_inputs"]])
    rows = np.random.default_rng(0).permutation(len(split.cases))[: FLAGS.requests]
    cases = split.cases.take(rows)
    return [raw(case) for case in cases.batches(1)], raw(cases.take(np.arange(len(rows))[:PROBES]))


def exchanges(bundles: Sequence[Bundle]) -> Iterator[dict]:
    """A row for each phase: calm, exchanging, and loading from disk."""
    directories = {bundle.model_version: bundle.directory for bundle in bundles}
    pairs = {version: load_pair(place) for version, place in directories.items()}
    if len(pairs) < 2:
        raise ValueError(f"both bundles are of training {[*pairs]}: take two trainings.")
    others = dict(zip(pairs, reversed(pairs)))
    inputs, probes = inputs_of(bundles)
    requests = Requests.of(inputs, *pairs.values(), FLAGS.k)
    phases = {
        "calm": (0, None),
        "exchange": (FLAGS.every, lambda version: pairs[others[version]]),
        "load": (FLAGS.load_every, lambda version: load_pair(directories[others[version]])),
    }
    calm = None
    with tempfile.TemporaryDirectory() as folder, WriteAheadLog(f"{folder}/log") as log:
        live = LiveIndex(next(iter(pairs.values())), log, Checks(probes))
        for phase, (every, make) in phases.items():
            if phase != "calm" and not every:
                continue
            with Load(live, requests) as asked:
                took = np.array(exchange(live, make, every)).reshape(-1, 2)
            if not asked.seconds:
                raise ValueError(f"no request was answered; the first error: {asked.errors[:1]}.")
            p50, p99 = 1e3 * np.quantile(asked.seconds, [0.5, 0.99])
            calm = calm or p99
            yield {
                "phase": phase,
                "index": FLAGS.index,
                "tower": "sample queries" if FLAGS.identity else "SavedModel",
                "threads": FLAGS.threads,
                "every_s": every or None,
                "exchanges": len(took),
                "searches": len(asked.seconds),
                "errors": len(asked.errors),
                "first_error": asked.errors[0] if asked.errors else None,
                "mixed": len(asked.mixed),
                "requests": len(requests.inputs),
                "p50_ms": float(p50),
                "p99_ms": float(p99),
                "longest_ms": 1e3 * max(asked.seconds),
                "p99_ratio": float(p99 / calm),
                "make_s": float(np.median(took[:, 0])) if len(took) else None,
                "swap_s": float(np.median(took[:, 1])) if len(took) else None,
            }


def mismatch(bundles: Sequence[Bundle]) -> Iterator[dict]:
    """Recall on validation of each tower (A: --bundle, B: --other_bundle) on each index.

    Raises:
        ValueError: A bundle that was refit on validation, or bundles or data that do not fit.
    """
    manifests = [bundle.manifest for bundle in bundles]
    dataset = dataset_of(bundles[0], FLAGS.data_dir)
    for bundle, manifest in zip(bundles, manifests):
        if manifest["refit"]:
            raise ValueError(
                f"{bundle.directory} was refit on the validation rows, so they cannot judge it. "
                "Take <workdir>/bundle_validation, or train with --norefit."
            )
        if manifest["dataset_fingerprint"] != dataset.fingerprint():
            raise ValueError(
                f"this {dataset.name} is not the data that {bundle.directory} was trained on."
            )
    asked = [(manifest["protocol"], manifest["split_seed"]) for manifest in manifests]
    if asked[0] != asked[1]:
        raise ValueError(f"the bundles were trained for two splits, {asked[0]} and {asked[1]}.")
    split = splits.make_split(dataset, asked[0][0], "validation", asked[0][1])
    about = {"protocol": split.protocol, "part": split.part, "index_kind": FLAGS.index}
    indexes = dict(zip("AB", (bundle.retriever(FLAGS.index) for bundle in bundles)))
    raw = [QueryInputs(dataset, [s["name"] for s in m["query_inputs"]]) for m in manifests]
    towers = dict(zip("AB", zip(bundles, raw)))
    for tower, index in ("AA", "BB", "BA", "AB"):
        bundle, inputs = towers[tower]

        def recommend(cases, k, bundle=bundle, inputs=inputs, retriever=indexes[index]):
            queries = [bundle.query_tower(inputs(part)) for part in cases.batches(256)]
            return retriever.search(np.concatenate(queries), k, exclude=cases.exclude)

        found = evaluate(recommend, split, dataset).metrics[METRIC]
        yield {"tower": tower, "index": index, METRIC: found} | about
    popularity = baselines.make("popularity").fit(dataset, split.train, split.candidates)
    found = evaluate(popularity.recommend, split, dataset).metrics[METRIC]
    yield {"tower": "popularity", "index": None, METRIC: found} | about


def line(row: dict) -> str:
    """A row as printed: names beside values, empty ones left out."""
    cells = []
    for name, value in row.items():
        if isinstance(value, dict):
            value = f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
        if value is not None:
            cells.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(cells)


def main():
    if FLAGS.mismatch and FLAGS.identity:
        raise app.UsageError("--mismatch asks the query towers: leave out --identity.")
    if not FLAGS.identity:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    bundles = [Bundle(FLAGS.bundle), Bundle(FLAGS.other_bundle)]
    inputs = [sorted(s["name"] for s in bundle.manifest["query_inputs"]) for bundle in bundles]
    for name, (one, other) in {
        "vectors of length": [bundle.manifest["dim"] for bundle in bundles],
        "query inputs": [[]] * 2 if FLAGS.identity or FLAGS.mismatch else inputs,
    }.items():
        if one != other:
            raise ValueError(f"expected bundles alike in shape; {name}: {one} and {other}.")
    strategy, measure = ("mismatch", mismatch) if FLAGS.mismatch else ("exchange", exchanges)
    rows = []
    for row in measure(bundles):
        rows.append({"strategy": strategy, **row})
        print(line(rows[-1]), flush=True)
    result = {"rows": rows, "model_versions": [b.model_version for b in bundles], **provenance()}
    write_result(FLAGS.output, result)
    wrong = {name: sum(row.get(name, 0) for row in rows) for name in ("errors", "mixed")}
    if any(wrong.values()):
        raise SystemExit(f"an exchange did harm: {wrong}.")


if __name__ == "__main__":
    script.run(main)
