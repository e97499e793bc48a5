"""Compares bundles and baselines on a split's questions, through SavedModels and indexes.

    twotower evaluate --bundle=W/bundle --data_dir=ml-1m
    twotower evaluate --bundle=W/bundle --data_dir=ml-1m --part=test --baselines=popularity,ease
    twotower evaluate --bundle=A/bundle --bundle=B/bundle --name=A --name=B --data_dir=ml-1m

The default is the validation part; only --part=test reads test data. A bundle that was refit has
learned from the validation rows, so W/bundle_validation answers in its place.

The data, protocol and seed are those of the manifest. Data with another fingerprint, or another
--split or --split_seed, is refused: the model may have trained on the answers. Only temporal-last
and temporal-successive train on the same rows, so a bundle of one answers the other's --split, too.

A bundle of `twotower train --hidden_items=.1` is also asked for those items, which it has not seen:
against each other alone, and among all candidates. Compare it with --baselines=content_ials.
--trained_alone also evaluates the bundle with only the items that have a training row.
"""

import json
import pathlib

from absl import flags

from twotower.commands import script

FLAGS = flags.FLAGS
FIRST = ("bundle", "data_dir", "part", "baselines", "index")

# Which metrics are printed without --all.
SHOWN = (
    *(f"recall@{k}" for k in (10, 50, 100, 500)),
    *("recall_micro@100", "hit_rate@10", "hit_rate@50", "ndcg@10", "mrr@500"),
    *("coverage@10", "coverage@100", "mean_popularity@10"),
)


def define_flags() -> None:
    """Defines the flags."""
    script.DEFINE_paths("bundle", "Folder of a bundle; again for each further one.", required=True)
    script.DEFINE_path("data_dir", None, "GroupLens folder, TFDS' data directory, or your tables.")
    flags.DEFINE_string("index", "exact", "exact, or an index of the bundle such as hnsw or scann.")
    flags.DEFINE_list(
        "allowed_uris", [], "Addresses that the index may connect to: a Milvus server's."
    )
    flags.DEFINE_enum("part", "validation", ["validation", "test"], "Which cases to ask.")
    flags.DEFINE_string(
        "split", None, "The manifest's protocol, or one with the same training rows."
    )
    flags.DEFINE_integer("split_seed", None, "Must be the manifest's seed; only a check.")
    flags.DEFINE_list(
        "baselines", [], "Also evaluate: popularity, ease, item_knn, ials, content_ials."
    )
    flags.DEFINE_float("max_gib", 4.0, "Memory in GiB that fitting a baseline may take.")
    flags.DEFINE_bool(
        "trained_alone",
        False,
        "One more row, in which only items with a training row may be answered.",
    )
    flags.DEFINE_multi_string("name", [], "What the bundle is called; again for each further one.")
    flags.DEFINE_bool("all", False, "Print all metrics; --output has them in any case.")
    script.DEFINE_path("output", None, "JSON file to write.")


def main() -> None:
    """Asks all recommenders, prints them side by side, and writes the rows as JSON."""
    output = FLAGS.output and pathlib.Path(FLAGS.output)
    if output:  # now, and not after the evaluation
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise ValueError(f"--output={output} is a folder; give a file.")

    # Here, so that --help and wrong flags need no TensorFlow and no pandas.
    from twotower.bundle.provenance import provenance
    from twotower.commands import judging
    from twotower.evaluation.comparison import heading
    from twotower.evaluation.evaluate import Report

    bundles = [judging.to_judge(path, FLAGS.part) for path in FLAGS.bundle]
    default = ["two towers"] if len(bundles) == 1 else FLAGS.bundle
    names = [*FLAGS.name, *default[len(FLAGS.name) :]]
    if len(names) > len(bundles) or len({*names}) < len(names):
        raise ValueError(f"expected a name of its own for each of {FLAGS.bundle}; got {names}.")
    judging.check_alike(bundles)
    dataset = judging.dataset_of(bundles[0], FLAGS.data_dir)
    for bundle in bundles:
        judging.check(bundle, dataset, FLAGS.split, FLAGS.split_seed)
    split = judging.split_of(bundles[0], dataset, FLAGS.part, FLAGS.split)
    for bundle in bundles:
        judging.check_unseen(bundle, dataset, split)
    rows: list[dict] = []
    reports: list[Report | None] = []
    retrievers = [bundle.retriever(FLAGS.index, FLAGS.allowed_uris) for bundle in bundles]
    # Baselines come first: one that needs too much memory is refused before a bundle is evaluated.
    judged_baselines = [
        judging.judge_baseline(name, dataset, split, FLAGS.max_gib) for name in FLAGS.baselines
    ]
    for name, bundle, retriever in zip(names, bundles, retrievers):
        row, report = judging.judge(bundle, retriever, dataset, split)
        rows.append({"name": name, "index": FLAGS.index, **row})
        reports.append(report)
        if FLAGS.trained_alone:
            metrics = judging.judge_trained_alone(bundle, retriever, dataset, split)
            rows.append({"name": f"{name}, trained items alone", "metrics": metrics})
            reports.append(None)
    for name, (row, report) in zip(FLAGS.baselines, judged_baselines):
        rows.append({"name": name, **row})
        reports.append(report)
    common = {"protocol": split.protocol, "part": split.part, **provenance()}
    first = reports[0]
    for row, report in zip(rows, reports):
        if first is not None and report is not None and report is not first:
            row["ahead"] = {name: first.compare(report, name) for name in report.values}
        row |= common
    if output:
        output.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    show(rows, heading(split))
    if len(split.candidates) < 1000:
        print(f"Of {len(split.candidates):,} items: where k is most of them, any model is good.")


def show(rows: list[dict], heading: str) -> None:
    """Prints all recommenders side by side."""
    from twotower.evaluation.comparison import Comparison, shown
    from twotower.evaluation.evaluate import SEGMENT_METRICS

    found = Comparison(heading, {row["name"]: row["metrics"] for row in rows})
    print(found.table(None if FLAGS.all else SHOWN))
    ahead = {row["name"]: row["ahead"] for row in rows if "ahead" in row}
    if ahead:
        title = f"\n{rows[0]['name']} minus each of these, user by user"
        print(Comparison(title, ahead).table(SEGMENT_METRICS, sign="+"))
    for row in rows:
        if "hidden" in row:
            print(f"\n{row['name']}, items hidden from training")
        for name, value in row.get("hidden", {}).items():
            print(f"{name:28s} {shown(value) if isinstance(value, dict) else f'{value:,.4g}'}")
