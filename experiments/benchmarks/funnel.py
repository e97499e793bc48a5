"""How fast a funnel answers: one request, one with a source that hangs, and all users at once.

    python experiments/benchmarks/funnel.py --bundle=W/bundle --data_dir=ml-1m --output=funnel.json

One request begins with a history and ends with --k candidates: the query tower's SavedModel, all
sources, the merge and the filters. Single requests run on one core. A source that hangs is
simulated by one that sleeps for a second in each request, with a deadline of 30 ms.
"""

import dataclasses
import os
import pathlib
import time

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.bundle import Bundle
from twotower.bundle.provenance import provenance, write_result
from twotower.commands import judging
from twotower.data import splits
from twotower.data.requests import Requests
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.stage import Source
from twotower.retrieval.candidates import Candidates

FLAGS = flags.FLAGS
script.DEFINE_path("bundle", None, "Folder of a bundle with a funnel.", required=True)
script.DEFINE_path("data_dir", None, "The data it was trained on.")
flags.DEFINE_string("name", "default", "Name of the funnel.")
flags.DEFINE_integer("k", 500, "Candidates at the end.", lower_bound=1)
flags.DEFINE_integer("requests", 1000, "Number of single requests.", lower_bound=10)
script.DEFINE_path("output", None, "JSON file to write.")

SLEEP, DEADLINE = 1.0, 0.03
WARM = 50


class Sleeper(Source):
    """Finds nothing, late."""

    kind = "sleeper"

    def __call__(self, requests: Requests, k: int) -> Candidates:
        time.sleep(SLEEP)
        return Candidates.empty(len(requests), k)


def pin(cores: set[int]) -> None:
    """Pins all threads of this process, and those that they start, to these cores."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)


def single(funnel: Funnel, cases: Requests, count: int) -> dict:
    """Milliseconds of requests one after the other, and of each step."""
    rows = np.random.default_rng(0).integers(len(cases), size=count + WARM)
    seconds, steps = [], {}
    for number, row in enumerate(rows):
        request = cases.take(np.array([row]))
        begun = time.perf_counter()
        answer = funnel.recommend(request, FLAGS.k)
        elapsed = time.perf_counter() - begun
        if number >= WARM:
            seconds.append(elapsed)
            for step in answer.steps:
                steps.setdefault(step.name, []).append(1e3 * step.seconds)
    p50, p99 = np.percentile(1e3 * np.array(seconds), [50, 99])
    found = {"p50_ms": float(p50), "p99_ms": float(p99), "requests": count}
    found["steps_p50_p99_ms"] = {n: np.percentile(v, [50, 99]).tolist() for n, v in steps.items()}
    found["sources_left_out"] = sorted(answer.missing)
    found["candidates"] = int(answer.candidates.counts[0])
    return found


def main() -> None:
    bundle = Bundle(FLAGS.bundle)
    dataset = judging.dataset_of(bundle, FLAGS.data_dir)
    manifest = bundle.manifest
    split = splits.make_split(dataset, manifest["protocol"], "test", manifest["split_seed"])
    bundle.encode = bundle.encoder(dataset)
    funnel = bundle.funnel(FLAGS.name)
    rows = []
    cores = os.sched_getaffinity(0)
    pin({min(cores)})
    rows.append({"name": "one request, one core", **single(funnel, split.cases, FLAGS.requests)})
    inlets = {name: Inlet(i.source, i.k, DEADLINE) for name, i in funnel.sources.items()}
    inlets["sleeper"] = Inlet(Sleeper(), 1, DEADLINE)
    hanging = Funnel(inlets, funnel.merge, funnel.stages, funnel.pool, funnel.fallback)
    name = f"one request, a source sleeps {SLEEP:g} s, deadline {1e3 * DEADLINE:g} ms"
    rows.append({"name": name, **single(hanging, split.cases, max(10, FLAGS.requests // 5))})
    hanging.close()
    pin(cores)
    rates = []
    for _ in range(4):
        asked = dataclasses.replace(split.cases)  # vectors are kept for each such object
        begun = time.perf_counter()
        answer = funnel.recommend(asked, FLAGS.k)
        rates.append(len(split.cases) / (time.perf_counter() - begun))
    steps = {step.name: step.seconds for step in answer.steps}
    rate = float(np.median(rates[1:]))  # the first loads and traces
    rows.append(
        {"name": f"{len(split.cases)} at once", "requests_a_second": rate, "steps_s": steps}
    )
    for row in rows:
        print(row)
    common = {"protocol": split.protocol, "sources": len(funnel.sources), **provenance()}
    if FLAGS.output:
        write_result(pathlib.Path(FLAGS.output), {"rows": [row | common for row in rows]})


if __name__ == "__main__":
    script.run(main)
