"""Trains a two-tower model, selects its epoch on validation, refits and exports a bundle.

    twotower train --data_dir=ml-1m --workdir=W

writes W/metrics.json (validation figures only) and W/bundle. Interrupted, the same command goes on
after the last finished epoch. Test figures come from `twotower evaluate --part=test`.

With --refit (the default) the model is trained twice: on the training rows without validation, to
select the epoch and to report, and then on all of them for that many epochs, for the bundle. The
first model stays in W/bundle_validation, which `twotower evaluate` can judge on validation.
Protocols whose training rows are the same for both parts (`loo`) are not refit.

For retraining on newer data, --warm_start=OLD/bundle_validation starts from the weights of an
earlier bundle. One that knows this validation's answers, such as one that was refit on the same
data, is refused without --allow_seen: its figures would be too good. Rows are compared by user,
item and time, so the new data must write these as the earlier data did: if all times have moved by
an hour, the rows count as different.
"""

import importlib.util
import json
import pathlib
import shlex
import time

from absl import flags, logging

from twotower.commands import script
from twotower.data import flags as data_flags
from twotower.storage import paths
from twotower.training import flags as recipe_flags

FLAGS = flags.FLAGS
FIRST = ("dataset", "data_dir", "workdir", "split", "epochs")


def define_flags() -> dict[str, list[str]]:
    """Defines the flags; returns groups of further ones, title -> names."""
    flags.DEFINE_string(
        "dataset",
        "movielens/1m",
        "movielens/1m, movielens/100k, synthetic, or tables for your own.",
    )
    script.DEFINE_path("data_dir", None, "GroupLens folder, TFDS' data directory, or your files'.")
    own_data = data_flags.define()
    flags.DEFINE_string(
        "split", "random", "Protocol: random, loo, loo-5core, temporal-last, ...; or with +time."
    )
    flags.DEFINE_integer("split_seed", 42, "Seed of the random protocols.")
    flags.DEFINE_float("hidden_items", 0.0, "Share of the items that no training row is left of.")
    script.DEFINE_path("workdir", None, "Folder for checkpoints, metrics.json and the bundle.")
    flags.DEFINE_bool("refit", True, "Train again on training and validation rows for the bundle.")
    script.DEFINE_path("warm_start", None, "Bundle whose weights to start from.")
    flags.DEFINE_list(
        "indexes",
        ["hnsw"] + ["scann"] * (importlib.util.find_spec("scann") is not None),
        "Indexes to build into the bundle; scann brings the SavedModel retrieve_scann, too.",
    )
    flags.DEFINE_bool(
        "allow_seen",
        False,
        "Warm start even from a bundle that knows what is asked, or does not say.",
    )
    flags.DEFINE_bool("tensorboard", False, "Log to <workdir>/tensorboard.")
    flags.mark_flag_as_required("workdir")
    return {"Your own data": own_data, **recipe_flags.define()}


def main() -> None:
    """Trains, judges on validation, exports, and writes metrics.json."""
    recipe_flags.recipe()  # a recipe that is wrong for any data is refused before the data is read
    workdir = paths.literal(FLAGS.workdir)

    # Here, so that --help and wrong flags need no TensorFlow and no pandas.
    import numpy as np

    from twotower.bundle.provenance import provenance
    from twotower.data.splits import hide_items, make_split
    from twotower.data.summary import summarise
    from twotower.retrieval.build import IndexConfig, make
    from twotower.storage.replacing import require_replaceable
    from twotower.trainer import Trainer
    from twotower.training.defaults import describe, recipe_for

    workdir.mkdir(parents=True, exist_ok=True)
    # What cannot be written or made is refused now, not after the training.
    require_replaceable(workdir / "bundle", "manifest.json")
    if (workdir / "metrics.json").is_dir():
        raise ValueError(f"{workdir / 'metrics.json'} is a folder; move it away.")
    for name in FLAGS.indexes:
        make(IndexConfig(name))
    started = time.perf_counter()
    dataset = data_flags.dataset()
    split = make_split(dataset, FLAGS.split, "validation", FLAGS.split_seed)
    split = hide_items(dataset, split, FLAGS.hidden_items)
    recipe = recipe_flags.recipe(recipe_for(dataset, split))
    print(summarise(dataset))
    print(describe(dataset, split, recipe), flush=True)
    trainer = Trainer(
        dataset,
        split,
        recipe,
        refit=FLAGS.refit,
        warm_start=FLAGS.warm_start,
        allow_seen=FLAGS.allow_seen,
    )
    selection = trainer.fit(workdir, tensorboard=FLAGS.tensorboard)
    print(trainer.evaluate())
    bundle = trainer.export(workdir / "bundle", FLAGS.indexes)
    seconds = {"selection": selection.seconds, "refit": trainer.refit_seconds}
    metrics = {
        "protocol": FLAGS.split,
        "part": "validation",
        "epoch": selection.best_epoch,
        "selected_by": selection.metric,
        "metrics": selection.validation,
        "log": selection.log,
        "seed": recipe.fit.seed,
        "ancestors": trainer.training.lineage().ancestors,
        "validation_seen": trainer.seen,  # by an ancestor; None where it does not say
        "segments": trainer.report.segments,
        "training_seconds": {name: round(s, 1) for name, s in seconds.items() if s is not None},
        "mining_seconds": round(selection.mining_seconds, 1),
        "examples_per_second": round(selection.examples_per_second),
        "wall_seconds": round(time.perf_counter() - started, 1),
        **provenance(),
    }
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    logging.info("wrote %s and %s", workdir / "metrics.json", bundle.directory)
    last = dataset.catalogue.ids_of(split.cases.history.take(np.array([0])).values[-3:])
    print(next_steps(bundle.directory, [*last], FLAGS.data_dir))


def next_steps(bundle: pathlib.Path, history: list[str], data_dir: str | None) -> str:
    """Commands to copy into a shell: what the bundle recommends, and how good it is."""
    # An id that has a comma in it stands in quotes.
    listed = flags.CsvListSerializer(",").serialize(history)
    data = [f"--data_dir={data_dir}"] if data_dir else []
    commands = {
        "ten titles": ["recommend", f"--history={listed}"],
        "test figures": ["evaluate", "--part=test", "--baselines=popularity", *data],
    }
    lines = []
    for what, (command, *arguments) in commands.items():
        line = ["twotower", command, f"--bundle={bundle}", *arguments]
        lines += [f"next, for {what}:", f"  {shlex.join(line)}"]
    return "\n".join(lines)
