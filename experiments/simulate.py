"""Exploration, off-policy estimates and A/B tests against a known truth.

    python experiments/simulate.py --output=simulate.json

The truth is that of the synthetic service: how likely each user clicks each item that is looked at,
and how likely each position is looked at (twotower/reranking/simulation.py). Four questions:

- What do bandits lose against the best list, and against one that never explores?
- How far are off-policy estimates from the truth, and do their 95% intervals cover it?
- Do A/A tests find a difference in 5% of the cases, and what does CUPED save?
- Does the check of the sample ratio find users that one variant loses?
"""

import concurrent.futures
import functools
import multiprocessing

from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from simulations.ab_tests import ab_rows, ratio_rows  # isort: skip  (these three beside this script)
from simulations.bandits import bandit_rows  # isort: skip
from simulations.estimators import estimator_rows, list_rows  # isort: skip
from twotower.bundle.provenance import provenance, write_result
from twotower.data import synthetic
from twotower.data.synthetic import SyntheticConfig

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 20_000, "Lists that a bandit shows.", lower_bound=100)
flags.DEFINE_integer("runs", 5, "Times that each bandit starts anew.", lower_bound=2)
flags.DEFINE_integer("replications", 2000, "Logs, and A/B tests, of each kind.", lower_bound=8)
flags.DEFINE_integer("users", 2000, "Users of the service.", lower_bound=100)
PARTS = ["bandits", "estimators", "lists", "tests", "ratios"]
flags.DEFINE_multi_enum("parts", PARTS, PARTS, "What is simulated.")
flags.DEFINE_integer("processes", 2, "Parts that run at once.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of the service and of all draws.")
script.DEFINE_path("output", None, "JSON file to write.")

# Logs: their rewards, number of rows, and how often the policy explored. In the short ones few rows
# have large weights.
LOGS = [
    *(("click", 1000, 0.5), ("log-minutes", 1000, 0.5)),
    *(("click", 300, 0.3), ("log-minutes", 300, 0.3)),
]


def main() -> None:
    made = synthetic.generate(
        SyntheticConfig(
            num_users=FLAGS.users, num_items=300, num_interactions=6 * FLAGS.users, seed=FLAGS.seed
        )
    )
    part, seed, num = functools.partial, FLAGS.seed, FLAGS.replications
    parts = {
        "bandits": [
            part(bandit_rows, made, clicking, FLAGS.rounds, FLAGS.runs, seed)
            for clicking in ("position", "cascade")
        ],
        "estimators": [part(estimator_rows, made, *log, num, seed) for log in LOGS],
        "lists": [part(list_rows, made, num // 4, seed)],
        "tests": [part(ab_rows, made, num, seed)],
        "ratios": [part(ratio_rows, 50 * FLAGS.users, max(2, num // 40), seed)],
    }
    asked = [each for name in FLAGS.parts for each in parts[name]]
    # A fork has what is imported, and the level of the log.
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(FLAGS.processes, context) as pool:
        rows = [row for future in [pool.submit(each) for each in asked] for row in future.result()]
    settings = {name: FLAGS[name].value for name in ("rounds", "runs", "replications", "users")}
    rows = [{**settings, **row, "seed": FLAGS.seed, **provenance()} for row in rows]
    if FLAGS.output:
        write_result(FLAGS.output, {"rows": rows})


if __name__ == "__main__":
    script.run(main)
