"""Times one more event: from a user of so many past events to the new query vector.

    python experiments/benchmarks/session.py --bundle=W/bundle --data_dir=ml-1m --output=out.json

Each round takes users of the validation cases with --events past events or more, begins a session
with the first of them and adds the others one by one, as if the user rated one film after another.
`step` is one event added; `reread` are those after which the whole window was read again; then
`encode` is one call of the query tower with the whole history, for each of the same vectors.
`difference` is the largest one between both vectors' components. One user at a time, on one thread
and core.

`first` is the first event of the process, for which TensorFlow prepares the graph of the signature.
It is not among the other times.
"""

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
import single_requests  # isort: skip  (first: numpy's threads)

import time

import numpy as np
from absl import app, flags

from twotower.bundle.provenance import provenance, write_result
from twotower.bundle.session import Session

FLAGS = flags.FLAGS
single_requests.define()
flags.DEFINE_integer("events", 200, "Past events when the clock starts.", lower_bound=1)
flags.DEFINE_integer("steps", 40, "Events that each user adds.", lower_bound=1)
flags.DEFINE_integer("users", 50, "Users.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")


def main():
    bundle, split, raw = single_requests.open_bundle()
    need = FLAGS.events + FLAGS.steps
    fits = np.flatnonzero(split.cases.history.lengths >= need)
    if not len(fits):
        raise app.UsageError(f"no user has {need} past events; ask for fewer --events or --steps.")
    rows = np.random.default_rng(0).permutation(fits)[: FLAGS.users]
    events = [name for name in raw.names if name.startswith("history")]
    seconds: dict[str, list[float]] = {"step": [], "reread": [], "encode": [], "first": []}
    difference = 0.0
    for case in split.cases.take(rows).batches(1):
        whole = raw(case)

        def upto(number, whole=whole):
            return whole | {name: whole[name][:, :number] for name in events}

        if not seconds["first"]:
            session, event = Session(bundle, upto(1)), {name: whole[name][:, 1] for name in events}
            started = time.perf_counter()
            session.add(whole | event)
            seconds["first"].append(time.perf_counter() - started)
            bundle.query_tower(upto(1))
        session, vectors = Session(bundle, upto(FLAGS.events)), []
        for number in range(FLAGS.events, need):
            event = whole | {name: whole[name][:, number] for name in events}
            before = int(session.rereads[0])
            started = time.perf_counter()
            vectors.append(session.add(event))
            taken = time.perf_counter() - started
            seconds["reread" if session.rereads[0] > before else "step"].append(taken)
        for number, vector in enumerate(vectors, FLAGS.events + 1):
            inputs = upto(number)
            started = time.perf_counter()
            exact = bundle.query_tower(inputs)
            seconds["encode"].append(time.perf_counter() - started)
            difference = max(difference, float(np.abs(vector - exact).max()))
    both = seconds["step"] + seconds["reread"]
    rows = [
        {
            "name": name,
            "calls": len(times),
            "p50_ms": 1e3 * float(np.quantile(times, 0.5)),
            "p99_ms": 1e3 * float(np.quantile(times, 0.99)),
        }
        for name, times in (seconds | {"step or reread": both}).items()
        if times
    ]
    for row in rows:
        times = f"p50 {row['p50_ms']:.2f} ms  p99 {row['p99_ms']:.2f} ms"
        print(f"{row['name']:15s} {row['calls']:6d} calls  {times}")
    print(f"largest difference from the whole history encoded {difference:.1e}")
    if FLAGS.output:
        result = {
            "rows": rows,
            "query": bundle.manifest["recipe"]["query"],
            "events": FLAGS.events,
            "difference": difference,
            "model_version": bundle.model_version,
            **provenance(),
        }
        write_result(FLAGS.output, result)


if __name__ == "__main__":
    script.run(main)
