"""Trains a two-tower model, selects its epoch on validation, refits and exports a bundle.

    python experiments/train.py --dataset=movielens/1m --data_dir=ml-1m --split=random --workdir=W

writes W/metrics.json (validation figures only) and W/bundle. Interrupted, the same command goes on
after the last finished epoch. Test figures come from experiments/evaluate.py and nowhere else.

With --refit (the default) the model is trained twice: on the training rows without validation, to
select the epoch and to report, and then on all of them for that many epochs, for the bundle. The
first model stays in W/bundle_validation, for experiments/evaluate.py --part=validation. Protocols
whose training rows are the same for both parts (`loo`) are not refit.

For retraining on newer data, --warm_start=OLD/bundle_validation starts from the weights of an
earlier bundle. One that knows this validation's answers, such as one that was refit on the same
data, is refused without --allow_seen: its figures would be too good.
"""

import json
import pathlib
import shlex
import time

import numpy as np
from absl import app, flags, logging

import script  # isort: skip  (first: quiets TensorFlow)
import recipe_flags  # isort: skip  (beside this script)
from twotower.bundle import bundle as bundles
from twotower.bundle.export import add_index, export, warm_start
from twotower.bundle.provenance import provenance
from twotower.data import load_dataset, splits
from twotower.evaluation.evaluate import evaluate
from twotower.retrieval.backends.scann_index import available
from twotower.retrieval.build import IndexConfig, make
from twotower.storage import paths
from twotower.training.fitting import FitResult, fit
from twotower.training.trainer import Training

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "movielens/1m", "movielens/1m, movielens/100k, synthetic, tables.")
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_string("split", "random", "Protocol: " + ", ".join(splits.PROTOCOLS) + "; or +time.")
flags.DEFINE_integer("split_seed", 42, "Seed of the random protocols.")
flags.DEFINE_float("hidden_items", 0.0, "Share of the items that no training row is left of.")
script.DEFINE_path("workdir", None, "Folder for checkpoints, metrics.json and the bundle.")
flags.DEFINE_bool("refit", True, "Train again on training and validation rows for the bundle.")
script.DEFINE_path("warm_start", None, "Bundle whose weights to start from.")
flags.DEFINE_list(
    "indexes", ["hnsw"] + ["scann"] * available(), "Indexes to build into the bundle."
)
flags.DEFINE_bool(
    "allow_seen", False, "Warm start even from a bundle that knows what is asked, or does not say."
)
flags.DEFINE_bool("tensorboard", False, "Log to <workdir>/tensorboard.")
recipe_flags.define()
flags.mark_flag_as_required("workdir")


def make_split(dataset, part: str) -> splits.Split:
    """A part of the flags' split."""
    split = splits.make_split(dataset, FLAGS.split, part, FLAGS.split_seed)
    return splits.hide_items(dataset, split, FLAGS.hidden_items)


def train_part(dataset, split: splits.Split, recipe, workdir: pathlib.Path, **kwargs):
    """One training: (the training, its result)."""
    training = Training(dataset, split, recipe)
    if FLAGS.warm_start:
        old = bundles.Bundle(FLAGS.warm_start)
        logging.info("warm start: %s", warm_start(training, old, FLAGS.allow_seen))
    result = fit(training, workdir, tensorboard=FLAGS.tensorboard, **kwargs)
    return training, result


def write_metrics(workdir: pathlib.Path, result: FitResult, **entries) -> dict:
    """Writes metrics.json: validation figures of the selected epoch."""
    metrics = {
        "protocol": FLAGS.split,
        "part": "validation",
        "epoch": result.best_epoch,
        "selected_by": result.metric,
        "metrics": result.validation,
        "log": result.log,
        **entries,
        **provenance(),
    }
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; every flag starts with --.")
    script.show_messages()
    workdir = paths.literal(FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    recipe = recipe_flags.recipe()
    for name in FLAGS.indexes:
        make(IndexConfig(name))  # what cannot be made is refused now, not behind the training
    started = time.perf_counter()
    dataset = load_dataset(FLAGS.dataset, FLAGS.data_dir)
    split = make_split(dataset, "validation")
    training, result = train_part(dataset, split, recipe, workdir / "selection")
    segments = evaluate(training.recommender(), training.split, dataset).segments
    seconds = {"selection": round(result.seconds, 1)}
    speed = round(result.examples_per_second)
    extra = {"validation": {"protocol": FLAGS.split, "metrics": result.validation}}
    extra |= {"hidden_items": FLAGS.hidden_items} if FLAGS.hidden_items else {}
    lineage = training.lineage()
    seen = lineage.share_seen(dataset, split)
    if training.ancestor and (seen is None or seen > 0):
        logging.warning(
            "warm start: the figures are of questions of which the earlier bundle knows %s",
            "nobody knows how many" if seen is None else f"{seen:.2%}",
        )
    whole = make_split(dataset, "test")
    if FLAGS.refit and np.array_equal(whole.train, split.train):
        logging.info("no refit: with %s there are no further rows to train on", FLAGS.split)
    elif FLAGS.refit:
        export(training, workdir / "bundle_validation", extra)
        training, refit = train_part(
            dataset,
            whole,
            recipe,
            workdir / "refit",
            select=False,
            stop_after=result.best_epoch,
        )
        seconds["refit"] = round(refit.seconds, 1)
    bundle = export(training, workdir / "bundle", extra)
    for name in FLAGS.indexes:
        add_index(bundle, name, IndexConfig(name))
    write_metrics(
        workdir,
        result,
        seed=recipe.fit.seed,
        ancestors=lineage.ancestors,
        validation_seen=seen,  # by an ancestor; None where it does not say
        segments=segments,
        training_seconds=seconds,
        mining_seconds=round(result.mining_seconds, 1),
        examples_per_second=speed,
        wall_seconds=round(time.perf_counter() - started, 1),
    )
    logging.info("wrote %s and %s", workdir / "metrics.json", bundle.directory)
    keys = split.cases.history.take(np.array([0])).values[-3:]
    history = ",".join(dataset.catalogue.ids_of(keys))
    data = [f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir else []
    commands = {
        "ten titles": ["recommend.py", f"--history={history}"],
        "test figures": ["evaluate.py", "--part=test", "--baselines=popularity", *data],
    }
    for what, (name, *arguments) in commands.items():
        line = ["python", f"experiments/{name}", f"--bundle={bundle.directory}", *arguments]
        print(f"next, for {what}:\n  {shlex.join(line)}")


if __name__ == "__main__":
    script.run(main)
