"""Compares rankers of a bundle with the order they are given, and with each source, on known
answers.

    twotower evaluate_ranker --bundle=W/bundle --data_dir=ml-1m
    twotower evaluate_ranker --bundle=W/bundle --data_dir=ml-1m --part=test \\
        --rankers=default,trees,random --output=ranking.json

The merge and all rankers order the same candidates, those that the merge and the filters left. Each
source orders its own. Differences are paired by user. The default is the validation part, on which
the rankers were trained. Only --part=test reads test data. `twotower train_ranker` makes rankers.
"""

import dataclasses
import pathlib

from absl import flags

from twotower.commands import script

FLAGS = flags.FLAGS
FIRST = ("bundle", "data_dir", "part", "rankers")
KS = (1, 10, 100, 500)
SHOWN = ("ndcg@1", "ndcg@10", "recall@10", "hit_rate@10", "recall_micro@100", "mrr@500")


def define_flags() -> None:
    """Defines the flags."""
    script.DEFINE_path("bundle", None, "Folder of the bundle.", required=True)
    script.DEFINE_path("data_dir", None, "GroupLens folder, TFDS' data directory, or your tables.")
    flags.DEFINE_enum("part", "validation", ["validation", "test"], "Which cases to ask.")
    flags.DEFINE_string("split", None, "The manifest's protocol, or one with the same rows.")
    flags.DEFINE_string("funnel", "default", "Name of the funnel that makes the candidates.")
    flags.DEFINE_list("rankers", [], "Names of rankers in the bundle; all by default.")
    flags.DEFINE_integer("users", 0, "Number of users, drawn at random; 0 for all.", 0)
    flags.DEFINE_integer("timed", 0, "Number of single requests to time each ranker with.")
    script.DEFINE_path("output", None, "JSON file to write.")


def main() -> None:
    """Compares the rankers, prints tables, and writes them as JSON."""
    # Here, so that --help and wrong flags need no TensorFlow and no pandas.
    import numpy as np

    from twotower.bundle.provenance import provenance, result_text
    from twotower.commands import judging
    from twotower.evaluation.comparison import Comparison, heading
    from twotower.evaluation.evaluate import evaluate
    from twotower.ranking import making, probability, report

    bundle = judging.to_judge(FLAGS.bundle, FLAGS.part)
    dataset = judging.dataset_of(bundle, FLAGS.data_dir)
    judging.check(bundle, dataset, FLAGS.split, None)
    split = judging.split_of(bundle, dataset, FLAGS.part, FLAGS.split)
    judging.check_unseen(bundle, dataset, split)
    if FLAGS.users:
        users = np.unique(split.cases.user_id.astype(str))
        chosen = np.random.default_rng(0).permutation(users)[: FLAGS.users]
        asked = split.cases.take(np.isin(split.cases.user_id.astype(str), chosen))
        split = dataclasses.replace(split, cases=asked)
    names = FLAGS.rankers or bundle.rankers
    if not names:
        raise ValueError(f"{FLAGS.bundle} has no rankers; `twotower train_ranker` makes one.")
    bundle.encode = bundle.encoder(dataset)
    rankers = {name: bundle.ranker(name) for name in names}
    funnel = making.unranked(bundle.funnel(FLAGS.funnel))
    judging.print_what_has_learned([f"the ranker {name}" for name in names], FLAGS.part)
    found = report.orders(funnel, rankers, split.cases)
    reports = {
        name: evaluate(order.recommend(), split, dataset, KS) for name, order in found.items()
    }
    print(Comparison(heading(split), {n: r.metrics for n, r in reports.items()}).table(SHOWN))
    rows = []
    for name in names:
        ahead = {
            other: {metric: reports[name].compare(reports[other], metric) for metric in SHOWN}
            for other in reports
            if other != name
        }
        print(Comparison(f"\n{name} minus the others, user by user", ahead).table(SHOWN, "+"))
        row = {"name": name, "metrics": reports[name].metrics, "ahead": ahead}
        row["about"] = bundle.ranker_entries(name)["about"]
        if found[name].calibration is not None:
            row["calibration_error"] = error = found[name].calibration_error
            print(f"expected calibration error, {probability.BINS} bins: {error:.4f}")
        if FLAGS.timed:
            taken = 1000 * report.seconds(funnel, rankers[name], split.cases, FLAGS.timed)
            row["milliseconds"] = {q: float(np.percentile(taken, q)) for q in (50, 99)}
            print(f"one request: p50, p99 {row['milliseconds']} ms")
        rows.append(row)
    rows += [
        {"name": name, "metrics": reports[name].metrics} for name in reports if name not in names
    ]
    common = {"protocol": split.protocol, "part": split.part, **provenance()}
    if FLAGS.users:
        common["users"] = len(chosen)
    if FLAGS.output:
        output = pathlib.Path(FLAGS.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(result_text({"rows": [{**row, **common} for row in rows]}))
