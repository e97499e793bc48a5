"""Trains a ranker on what a bundle's funnel finds, and puts it behind the funnel.

    twotower train_ranker --bundle=W/bundle --data_dir=ml-1m
    twotower train_ranker --bundle=W/bundle --data_dir=ml-1m --name=trees --model=trees
    twotower train_ranker --bundle=W/bundle --data_dir=ml-1m --name=random --negatives=random

Candidates and labels are those of the validation cases, which neither the towers nor the sources
may have learned from. So for a bundle that was refit on them, W/bundle_validation makes the
candidates, and the ranker then stands behind the funnels of both. `temporal-last` has one request
for each user, which is little to learn from. --split=temporal-successive has the same training
rows, and one request for each event after them. `twotower build_funnel` comes first. The ranker
takes the place of the one that the funnel has, or stands behind its filters.
"""

import dataclasses
import time

from absl import flags, logging

from twotower.commands import script

FLAGS = flags.FLAGS
FIRST = ("bundle", "data_dir", "name", "model", "loss", "heads")


def define_flags() -> None:
    """Defines the flags."""
    script.DEFINE_path("bundle", None, "Folder of the bundle.", required=True)
    script.DEFINE_path("data_dir", None, "GroupLens folder, TFDS' data directory, or your tables.")
    flags.DEFINE_string("name", "default", "Name of the ranker in the bundle.")
    flags.DEFINE_string("funnel", "default", "Name of the funnel that makes the candidates.")
    flags.DEFINE_string("split", None, "The manifest's protocol, or one with the same rows.")
    flags.DEFINE_integer(
        "requests", 0, "Most validation cases to learn from, drawn at random; 0 for all.", 0
    )
    flags.DEFINE_bool("place", True, "Put the ranker behind the filters of the funnel.")
    flags.DEFINE_enum(
        "model",
        "mlp",
        ["mlp", "dcn", "deepfm", "dlrm", "trees"],
        "Network, or LightGBM's trees (LambdaMART with a listwise loss).",
    )
    flags.DEFINE_enum(
        "negatives",
        "funnel",
        ["funnel", "random"],
        "What stands beside a target: what the funnel found, or random items, which is a mistake "
        "that is made often.",
    )
    flags.DEFINE_enum(
        "loss", "listwise", ["listwise", "pairwise", "pointwise"], "Of the head `relevance`."
    )
    flags.DEFINE_list("heads", [], "Further heads: like (a rating of 4 or more), rating.")
    flags.DEFINE_list("weights", ["relevance=1"], "What each head counts where nothing is asked.")
    flags.DEFINE_bool("residual", True, "Add the ranker's output to the score it was given.")
    flags.DEFINE_list(
        "fields", [], "Columns of codes beside the numbers: genres, age, gender, occupation."
    )
    flags.DEFINE_integer("dim", 8, "Length of the vector of a code.", lower_bound=1)
    flags.DEFINE_list("hidden", ["64", "32"], "Widths of the dense layers.")
    flags.DEFINE_float("dropout", 0.1, "Share of activations dropped in training.")
    flags.DEFINE_float("learning_rate", 0.001, "Of AdamW.")
    flags.DEFINE_float("weight_decay", 0.1, "Of AdamW.")
    flags.DEFINE_integer("candidates", 300, "Of a request in a step of the training.")
    flags.DEFINE_integer(
        "folds", 4, "Parts of the users; a model for each, stopped by it. The ranker is their mean."
    )
    flags.DEFINE_integer("epochs", 20, "At most so many passes.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of weights, order, folds and the draw of requests.")
    flags.DEFINE_bool("shuffle_labels", False, "Shuffle the labels: nothing may be learned.")


def main() -> None:
    """Trains the ranker and stores it."""
    # Here, so that --help and wrong flags need no TensorFlow and no pandas.
    import numpy as np

    from twotower.commands import judging
    from twotower.ranking import making
    from twotower.storage import paths

    config = making.RankingConfig(
        model=FLAGS.model,
        negatives=FLAGS.negatives,
        loss=FLAGS.loss,
        heads=tuple(FLAGS.heads),
        weights=making.parse_weights(FLAGS.weights),
        residual=FLAGS.residual,
        fields=tuple(FLAGS.fields),
        dim=FLAGS.dim,
        hidden=making.parse_widths(FLAGS.hidden),
        dropout=FLAGS.dropout,
        learning_rate=FLAGS.learning_rate,
        weight_decay=FLAGS.weight_decay,
        candidates=FLAGS.candidates,
        folds=FLAGS.folds,
        epochs=FLAGS.epochs,
        seed=FLAGS.seed,
        shuffle_labels=FLAGS.shuffle_labels,
    )
    paths.require_plain_name(FLAGS.name, "a ranker")
    begun = time.perf_counter()
    bundles = judging.to_extend(FLAGS.bundle)
    final, _ = bundles[-1]
    dataset = judging.dataset_of(final, FLAGS.data_dir)
    judging.check(final, dataset, FLAGS.split, None)
    made = None
    for bundle, part in bundles:
        split = judging.split_of(bundle, dataset, part, FLAGS.split)
        bundle.encode = bundle.encoder(dataset)
        if made is None:
            judging.check_unseen(bundle, dataset, split)
            funnel = making.unranked(bundle.funnel(FLAGS.funnel))
            cases = split.cases
            if 0 < FLAGS.requests < len(cases):
                draw = np.random.default_rng(FLAGS.seed)
                rows = draw.choice(len(cases), FLAGS.requests, replace=False)
                split = dataclasses.replace(split, cases=cases.take(np.sort(rows)))
            made = making.train(config, funnel, bundle, dataset, split)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in made.held_out.items())
            print(f"ndcg@10 of requests that a model did not learn from: {shown}")
            if made.held_out["ranked"] <= made.held_out["given"]:
                logging.warning(
                    "the ranker does not better the order that it is given. Take more validation "
                    "rows or sources, or serve without it (--noplace)."
                )
        ranker = made.on(bundle, dataset, split)
        bundle.add_ranker(ranker, made.models, FLAGS.name, made.about)
        if FLAGS.place:
            funnel = bundle.funnel(FLAGS.funnel)
            making.place(funnel, ranker, FLAGS.name)
            bundle.add_funnel(funnel, FLAGS.funnel)
        print(bundle.directory / "rankers" / FLAGS.name)
    print(f"{time.perf_counter() - begun:.0f} s")
