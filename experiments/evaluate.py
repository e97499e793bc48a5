"""Evaluates a bundle through its SavedModel and an index; the only script that reads test data.

    python experiments/evaluate.py --bundle=W/bundle --data_dir=ml-1m --part=test --output=out.json

The data, protocol and seed are the manifest's. Data with another fingerprint, or another --split
or --split_seed, is refused: the model may have trained on what would be asked. Only temporal-last
and temporal-successive train on the same rows, so a bundle of one answers the other's --split, too.

A bundle of train.py --hidden_items=.1 is also asked for those items, which it has not seen: against
each other alone, and among all candidates. --baselines=content_ials is the one to compare with.
--trained_alone tells what it costs that items without a training row are answered, too.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.bundle import Bundle
from twotower.bundle.provenance import provenance
from twotower.data import load_dataset, splits
from twotower.data.examples import QueryInputs
from twotower.evaluation import baselines
from twotower.evaluation.evaluate import SEGMENT_METRICS, evaluate, evaluate_hidden, from_scores
from twotower.retrieval.tuning import recall_against

# Protocols that ask different questions of a model trained on the same rows.
SAME_ROWS = [{f"temporal-last{told}", f"temporal-successive{told}"} for told in ("", "+time")]

FLAGS = flags.FLAGS
script.DEFINE_path("bundle", None, "Folder of the bundle.", required=True)
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_string("index", "exact", "exact, or an index of the bundle such as hnsw or scann.")
flags.DEFINE_list("allowed_uris", [], "Addresses that the index may connect to: a Milvus server's.")
flags.DEFINE_enum("part", "validation", ["validation", "test"], "Which cases to ask.")
flags.DEFINE_string("split", None, "The manifest's protocol, or one with the same training rows.")
flags.DEFINE_integer("split_seed", None, "Must be the manifest's seed; only a check.")
flags.DEFINE_list("baselines", [], "Also evaluate: " + ", ".join(baselines.BASELINES) + ".")
flags.DEFINE_float("max_gib", 4.0, "Memory in GiB that fitting a baseline may take.")
flags.DEFINE_bool(
    "trained_alone", False, "One more row, in which only items with a training row may be answered."
)
flags.DEFINE_string("name", "two towers", "What the row is called.")
script.DEFINE_path("output", None, "JSON file to write; without, metrics go to standard output.")


def check(manifest: dict, dataset) -> None:
    """Refuses a split or data other than the manifest's.

    Raises:
        ValueError: A protocol or seed with other training rows than the manifest's; another
            fingerprint; the validation part after a refit.
    """
    for flag, entry in (("split", "protocol"), ("split_seed", "split_seed")):
        asked = getattr(FLAGS, flag)
        given = manifest[entry]
        if asked not in (None, given) and {asked, given} not in SAME_ROWS:
            raise ValueError(
                f"the bundle was trained for {entry} {given!r}, not {asked!r}: its "
                "training rows may be that split's test rows. Train on the other split."
            )
    if FLAGS.part == "validation" and manifest["refit"]:
        raise ValueError(
            "this bundle was refit on the validation rows, so they cannot judge it. Its "
            "validation figures are in metrics.json; <workdir>/bundle_validation can be asked."
        )
    fingerprint = dataset.fingerprint()
    if fingerprint != manifest["dataset_fingerprint"]:
        raise ValueError(
            f"this {dataset.name} is not the data that the bundle was trained on: fingerprint "
            f"{fingerprint[:12]}, the manifest says {manifest['dataset_fingerprint'][:12]}. "
            "Rows, their order and all columns must be the same."
        )


def check_unseen(bundle: Bundle, dataset, split: splits.Split) -> None:
    """Refuses to judge a model by what it, or one that it started from, has learned.

    Raises:
        ValueError: It has seen rows of the questions or of hidden items; or it does not say, and is
            warm-started or made to find hidden items, which earlier versions drew for each part.
    """
    lineage, manifest = bundle.lineage, bundle.manifest
    if lineage.rows is None and not (manifest.get("ancestors") or manifest.get("hidden_items")):
        return  # of an earlier version; `check` has compared data and split
    advice = "Train anew, from scratch or from a bundle of older rows (train.py --warm_start)."
    lineage.require_unseen(dataset, split, advice)


def embedder(bundle: Bundle, dataset, batch_size: int = 256):
    """`embed(cases)` through the SavedModel of the query tower, from raw inputs."""
    inputs = QueryInputs(dataset, [spec["name"] for spec in bundle.manifest["query_inputs"]])

    def embed(cases) -> np.ndarray:
        return np.concatenate(
            [bundle.query_tower(inputs(part)) for part in cases.batches(batch_size)]
        )

    return embed


def line(value: dict, sign: str = "") -> str:
    """A mean and its 95% interval."""
    low, high = value["low"], value["high"]
    around = "" if low is None else f"  [{low:{sign}.4f}, {high:{sign}.4f}]"
    return f"{value['mean']:{sign}.4f}{around}"


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; every flag starts with --.")
    output = FLAGS.output and pathlib.Path(FLAGS.output)
    if output:  # now, and not behind the evaluation
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.is_dir():
            raise app.UsageError(f"--output={output} is a folder; give a file.")
    bundle = Bundle(FLAGS.bundle)
    manifest = bundle.manifest
    dataset = load_dataset(manifest["dataset"], FLAGS.data_dir)
    check(manifest, dataset)
    protocol = FLAGS.split or manifest["protocol"]
    split = splits.make_split(dataset, protocol, FLAGS.part, manifest["split_seed"])
    split = splits.hide_items(dataset, split, manifest.get("hidden_items", 0.0))
    check_unseen(bundle, dataset, split)
    common = {"protocol": split.protocol, "part": split.part, **provenance()}
    embed, retriever = embedder(bundle, dataset), bundle.retriever(FLAGS.index, FLAGS.allowed_uris)

    def recommend_among(keys=None):
        return lambda cases, k: retriever.search(embed(cases), k, exclude=cases.exclude, allow=keys)

    report = evaluate(recommend_among(), split, dataset)
    row = {
        "name": FLAGS.name,
        "index": FLAGS.index,
        "model_version": bundle.model_version,
        "seed": manifest["recipe"]["fit"]["seed"],
        "recipe": manifest["recipe"],
        "metrics": report.metrics,
        "segments": report.segments,
        **common,
    }
    if FLAGS.index != "exact":
        # Without exclusions: with many of them a Retriever scans exactly.
        vectors = embed(split.cases)
        exact = bundle.retriever("exact").search(vectors, 100)
        row["ann_recall@100"] = recall_against(exact, retriever.search(vectors, 100))
    if split.hidden is not None:
        row["hidden"] = evaluate_hidden(recommend_among, split, report)
    rows = [row]
    if FLAGS.trained_alone:
        trained = np.intersect1d(split.candidates, np.flatnonzero(split.item_counts))
        metrics = evaluate(recommend_among(trained), split, dataset).metrics
        rows.append({"name": f"{FLAGS.name}, trained items alone", "metrics": metrics, **common})
    for name in FLAGS.baselines:
        fitted = baselines.make(name).fit(dataset, split.train, split.candidates, FLAGS.max_gib)
        other = evaluate(fitted.recommend, split, dataset)
        ahead = {metric: report.compare(other, metric) for metric in report.values}
        rows.append({"name": name, "metrics": other.metrics, "ahead": ahead, **common})
        if split.hidden is not None:
            rows[-1]["hidden"] = evaluate_hidden(
                lambda keys, model=fitted: from_scores(model.scores, keys), split, other
            )
    text = json.dumps({"rows": rows}, indent=1)
    if output:
        output.write_text(text + "\n")
    print(f"{split.protocol}, {split.part}, {len(split.cases):,} cases, mean and 95% interval")
    if len(split.candidates) < 2 * max(report.ks):
        print(
            f"of {len(split.candidates):,} candidates: where k is most of them, any model is good"
        )
    for row in rows:
        print(row["name"])
        for name, value in row["metrics"].items():
            print(f"  {name:22s} {line(value)}")
        for name, value in row.get("hidden", {}).items():
            shown = line(value) if isinstance(value, dict) else f"{value:,.4g}"
            print(f"  {name:26s} {shown}")
        for name in SEGMENT_METRICS if "ahead" in row else ():
            value = line(row["ahead"][name], "+")
            print(f"  {name:22s} {value}  {FLAGS.name}, user by user, above this")


if __name__ == "__main__":
    app.run(main)
