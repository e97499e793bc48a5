"""Compares answering concurrent requests by one call with one call for each request.

    python experiments/benchmarks/batching.py --bundle=W/bundle --output=batching.json

`encode` makes the inputs and runs the query tower's SavedModel, `search` is an index, and
`recommend` is everything that a service does between the body of a request and that of the answer.
The two ways take turns, on one thread.
"""

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
import single_requests  # noqa: F401  # isort: skip  (first: numpy's threads)

import time

import numpy as np
from absl import flags

from twotower.bundle.provenance import provenance, write_result
from twotower.data.requests import Requests
from twotower.serving.asks import Ask
from twotower.serving.pipeline import Pipeline
from twotower.tf import tf

FLAGS = flags.FLAGS
script.DEFINE_path("bundle", None, "Folder of a bundle.", required=True)
flags.DEFINE_integer("requests", 16, "Requests of a batch.", 2)
flags.DEFINE_integer("rounds", 200, "Number of batches.", 10)
script.DEFINE_path("output", None, "JSON file to write.")


def main() -> None:
    """Prints and writes medians of both ways."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    pipeline = Pipeline(FLAGS.bundle, cache_size=0)
    pipeline.warm()
    bundle, rng = pipeline.bundle, np.random.default_rng(0)
    ids = bundle.catalogue.ids_of(bundle.keys)
    index = bundle.named("")
    seconds: dict[str, dict[str, list[float]]] = {}

    def note(stage: str, way: str, begun: float) -> None:
        ways = seconds.setdefault(stage, {"together": [], "each": []})
        ways[way].append(time.perf_counter() - begun)

    for _ in range(FLAGS.rounds):
        histories = [rng.choice(ids, rng.integers(1, 21)).tolist() for _ in range(FLAGS.requests)]
        asks = [Ask(history=history, funnel="two_tower") for history in histories]
        for way, groups in (("together", [slice(None)]), ("each", singles(FLAGS.requests))):
            parts = [Requests.of(bundle.catalogue, histories[group]) for group in groups]
            begun = time.perf_counter()
            vectors = [bundle.encode(part) for part in parts]
            note("encode", way, begun)
            begun = time.perf_counter()
            for part, some in zip(parts, vectors):
                index.search(some, 10, exclude=part.exclude)
            note("search", way, begun)
            begun = time.perf_counter()
            for group in groups:
                pipeline.recommend(asks[group])
            note("recommend", way, begun)
    rows = []
    for stage, ways in seconds.items():
        median = {way: 1e3 * float(np.median(values)) for way, values in ways.items()}
        rows.append({"stage": stage, **median, "ratio": median["each"] / median["together"]})
        print(rows[-1])
    if FLAGS.output:
        common = {"requests": FLAGS.requests, "index": bundle.index, **provenance()}
        write_result(FLAGS.output, {**common, "rows": rows})


def singles(count: int) -> list[slice]:
    """One request at a time."""
    return [slice(number, number + 1) for number in range(count)]


if __name__ == "__main__":
    script.run(main)
