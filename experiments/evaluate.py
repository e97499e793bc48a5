"""Evaluates a bundle through its SavedModel and an index; the only script that reads test data.

    python experiments/evaluate.py --bundle=W/bundle --data_dir=ml-1m --part=test --output=out.json

The data, protocol and seed are the manifest's. Data with another fingerprint, or another --split
or --split_seed, is refused: the model may have trained on what would be asked.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

import twotower  # noqa: F401  (first: sets the Keras switch before TensorFlow loads)
from twotower import baselines
from twotower.bundle import Bundle
from twotower.data import load, splits
from twotower.data.examples import QueryInputs
from twotower.evaluation import evaluate
from twotower.provenance import provenance
from twotower.retrieval.tuning import recall_against

FLAGS = flags.FLAGS
flags.DEFINE_string("bundle", None, "Folder of the bundle.", required=True)
flags.DEFINE_string("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_string("index", "exact", "exact, or an index of the bundle such as hnsw or scann.")
flags.DEFINE_enum("part", "validation", ["validation", "test"], "Which cases to ask.")
flags.DEFINE_string("split", None, "Must be the manifest's protocol; only a check.")
flags.DEFINE_integer("split_seed", None, "Must be the manifest's seed; only a check.")
flags.DEFINE_list("baselines", [], "Also evaluate: popularity, ease, item_knn, ials.")
flags.DEFINE_string("name", "two towers", "What the row is called.")
flags.DEFINE_string("output", None, "JSON file to write; without, metrics go to standard output.")


def check(manifest: dict, dataset) -> None:
    """Refuses to judge a model by data that it may have been trained on.

    Raises:
        ValueError: Another protocol, seed, part or fingerprint than the manifest's.
    """
    for flag, entry in (("split", "protocol"), ("split_seed", "split_seed")):
        asked = getattr(FLAGS, flag)
        if asked is not None and asked != manifest[entry]:
            raise ValueError(
                f"the bundle was trained for {entry} {manifest[entry]!r}, not {asked!r}: its "
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


def recommender(bundle: Bundle, dataset, index: str, batch_size: int = 256):
    """`recommend(cases, k)` through the SavedModel's query tower and an index of the bundle."""
    inputs = QueryInputs(dataset, [spec["name"] for spec in bundle.manifest["query_inputs"]])
    retriever = bundle.retriever(index)

    def embed(cases) -> np.ndarray:
        parts = [
            bundle.query_tower(inputs(cases.take(np.arange(start, min(start + batch_size, end)))))
            for end in [len(cases)]
            for start in range(0, end, batch_size)
        ]
        return np.concatenate(parts)

    def recommend(cases, k):
        return retriever.search(embed(cases), k, exclude=cases.exclude)

    return recommend


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; every flag starts with --.")
    bundle = Bundle(FLAGS.bundle)
    manifest = bundle.manifest
    dataset = load(manifest["dataset"], FLAGS.data_dir)
    check(manifest, dataset)
    split = splits.make_split(dataset, manifest["protocol"], FLAGS.part, manifest["split_seed"])
    common = {"protocol": split.protocol, "part": split.part, **provenance()}
    recommend = recommender(bundle, dataset, FLAGS.index)
    report = evaluate(recommend, split)
    row = {
        "name": FLAGS.name,
        "index": FLAGS.index,
        "model_version": bundle.model_version,
        "seed": manifest["recipe"]["fit"]["seed"],
        "metrics": report.metrics,
        "segments": report.segments,
        **common,
    }
    if FLAGS.index != "exact":
        exact = recommender(bundle, dataset, "exact")
        row["ann_recall@100"] = recall_against(exact(split.cases, 100), recommend(split.cases, 100))
    rows = [row]
    for name in FLAGS.baselines:
        fitted = baselines.make(name).fit(dataset, split.train, split.candidates)
        rows.append({"name": name, "metrics": evaluate(fitted.recommend, split).metrics, **common})
    text = json.dumps({"rows": rows}, indent=1)
    if FLAGS.output:
        path = pathlib.Path(FLAGS.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    for row in rows:
        shown = {name: value["mean"] for name, value in row["metrics"].items()}
        print(row["name"], " ".join(f"{name} {value:.4f}" for name, value in shown.items()))


if __name__ == "__main__":
    app.run(main)
