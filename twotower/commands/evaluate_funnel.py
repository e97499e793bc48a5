"""Reports what each stage of a bundle's funnel gains and loses, on known answers.

    twotower evaluate_funnel --bundle=W/bundle --data_dir=ml-1m
    twotower evaluate_funnel --bundle=W/bundle --data_dir=ml-1m --part=test --output=funnel.json
    twotower evaluate_funnel --bundle=A/bundle --bundle=B/bundle --data_dir=ml-1m

Each source is asked once for a case, and all figures come from these answers: the recall of every
source and of the pool; what a source alone found; the pool without it; what filters removed; and
accuracy, coverage, novelty and diversity at the end. Queries of new users, of niche users, and for
cold items are also shown separately (twotower/evaluation/segments.py defines them). With several
bundles it shows which stage loses a gain: A's recall minus B's after each stage.

The default is the validation part. Rankers have learned from it, and so have the weights of a
`weighted_sum`: figures that depend on them are then too good. Only --part=test reads test data.
`twotower build_funnel` makes the funnel.
"""

import pathlib

from absl import flags

from twotower.commands import script

FLAGS = flags.FLAGS
FIRST = ("bundle", "data_dir", "part", "name", "newest")
SHOWN = ("ndcg@10", "recall@10", "recall_micro@100", "recall@500", "hit_rate@10", "mrr@500")


def define_flags() -> None:
    """Defines the flags."""
    script.DEFINE_paths("bundle", "Folder of a bundle; again for each further one.", required=True)
    script.DEFINE_path("data_dir", None, "GroupLens folder, TFDS' data directory, or your tables.")
    flags.DEFINE_enum("part", "validation", ["validation", "test"], "Which cases to ask.")
    flags.DEFINE_string("split", None, "The manifest's protocol, or one with the same rows.")
    flags.DEFINE_string("name", "default", "Name of the funnel in the bundles.")
    flags.DEFINE_integer(
        "newest",
        0,
        "Ask as new users, with so many of the newest events and no user id; 0 for all events.",
        lower_bound=0,
    )
    script.DEFINE_path("output", None, "JSON file to write.")


def main() -> None:
    """Asks the funnels, prints their stages, and writes them as JSON."""
    # Here, so that --help and wrong flags need no TensorFlow and no pandas.
    import dataclasses

    from twotower.bundle.provenance import provenance, result_text
    from twotower.commands import judging
    from twotower.evaluation import segments
    from twotower.evaluation.comparison import Comparison, heading
    from twotower.evaluation.evaluate import evaluate
    from twotower.evaluation.variety import VARIETY, variety
    from twotower.funnel import report
    from twotower.funnel.cold_start import ExplorationSlots
    from twotower.funnel.exploration import explored
    from twotower.funnel.merge import WeightedSum
    from twotower.ranking.stage import Rank

    bundles = [judging.to_judge(path, FLAGS.part) for path in FLAGS.bundle]
    judging.check_alike(bundles)
    dataset = judging.dataset_of(bundles[0], FLAGS.data_dir)
    split = judging.split_of(bundles[0], dataset, FLAGS.part, FLAGS.split)
    if FLAGS.newest:
        split = dataclasses.replace(split, cases=split.cases.as_new_users(FLAGS.newest))
    rows: list[dict] = []
    for path, bundle in zip(FLAGS.bundle, bundles):
        judging.check(bundle, dataset, FLAGS.split, None)
        judging.check_unseen(bundle, dataset, split)
        bundle.encode = bundle.encoder(dataset)
        funnel = bundle.funnel(FLAGS.name)
        learned = ["the merge"] if isinstance(funnel.merge, WeightedSum) else []
        learned += ["the ranker"] if any(stage.kind == Rank.kind for stage in funnel.stages) else []
        judging.print_what_has_learned(learned, FLAGS.part)
        recording = report.Recording(funnel)
        ks = tuple(sorted({10, 100, 500, funnel.pool}))
        found = evaluate(recording, split, dataset, ks=ks)
        stages = recording.report()
        print(report.table(stages, f"{path}, {FLAGS.name}: {heading(split)}"))
        varied = variety(recording.first_ten, dataset, split)
        alone = {
            name: evaluate(recording.alone(name), split, dataset, ks=ks) for name in funnel.sources
        }
        ahead = {
            name: {metric: found.compare(source, metric) for metric in SHOWN}
            for name, source in alone.items()
        }
        title = "\nthe funnel minus each source alone, user by user"
        print(Comparison(title, ahead).table(SHOWN, "+"))
        by_segment = segments.by_segment(found, alone, dataset, split)
        print("\n" + segments.table(by_segment, "the funnel"))
        exploration = {}
        if any(stage.kind == ExplorationSlots.kind for stage in funnel.stages):
            exploration["exploration"] = explored(funnel, split.cases, recording.found)
        rows.append(
            {
                **exploration,
                "name": FLAGS.name,
                "bundle": path,
                "newest": FLAGS.newest,
                "protocol": split.protocol,
                "part": split.part,
                "stages": [stage.to_json() for stage in stages],
                "metrics": found.metrics | varied,
                "alone": {name: source.metrics for name, source in alone.items()},
                "ahead": ahead,
                "by_segment": by_segment,
                **provenance(),
            }
        )
    if len(rows) > 1:
        print(report.gains(*[row["stages"] for row in rows[:2]]))
    columns = {row["bundle"]: row["metrics"] for row in rows}
    print(Comparison("at the end", columns).table((*SHOWN, *VARIETY)))
    for row in rows:
        if "exploration" in row:
            print("\nfresh items, in a random order of requests:", row["exploration"])
    if FLAGS.output:
        output = pathlib.Path(FLAGS.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(result_text({"rows": rows}))
