"""Rankers against a published table: click-through-rate prediction on `ctr-1m`.

    python experiments/studies/ctr.py --flagfile=experiments/flags/ranking/ctr_1m.flags \
        --data_dir=ml-1m --part=test --output=experiments/results/ranking/ctr_1m.json

This checks the networks. It is not a recommendation task: the rows are ratings that users chose to
give, in a random order, so a model sees a user's later ratings before earlier ones
(`ctr_table.py`). Trains on eight tenths, stops when the AUC of the validation tenth no longer
rises, and reads the test tenth once, at the end. Probabilities are calibrated on validation. One
row of results for each network and seed; a row that the output file has with this name, network and
seed is replaced.
"""

import json
import pathlib

from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
import ctr_fit
import ctr_table

from twotower.bundle.provenance import provenance, write_result
from twotower.data import load_dataset
from twotower.ranking.config import INTERACTIONS, RankerConfig

FLAGS = flags.FLAGS
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_string("dataset", "movielens/1m", "A dataset with ratings, and MovieLens' columns.")
flags.DEFINE_multi_enum("interaction", ["dcn"], INTERACTIONS, "Network; may be given repeatedly.")
flags.DEFINE_list("seeds", ["0"], "Seeds of weights and order; the split is always the same.")
flags.DEFINE_bool("ratings", False, "Also read the user's other training ratings.")
flags.DEFINE_bool("shuffled_labels", False, "Train on labels in random order: chance, to compare.")
flags.DEFINE_enum("part", "validation", ["validation", "test"], "Part of the figures.")
flags.DEFINE_string("name", "seven fields", "Name of the rows.")
flags.DEFINE_integer("dim", 16, "Length of the vector of a code.", lower_bound=1)
flags.DEFINE_list("hidden", ["64", "64"], "Widths of the dense layers.")
flags.DEFINE_integer("cross_layers", 2, "Cross layers of dcn.", lower_bound=1)
flags.DEFINE_float("dropout", 0.2, "Share of hidden activations dropped.")
flags.DEFINE_float("l2", 1e-6, "Weight of the squared vectors in the loss.", lower_bound=0)
flags.DEFINE_float("learning_rate", 0.004, "Of Adam.", lower_bound=0)
flags.DEFINE_integer(
    "last_epochs", 6, "From this epoch on, counted from 0, it is 0.3 of that.", lower_bound=1
)
flags.DEFINE_integer("batch_size", 4096, "Rows of a step.", lower_bound=1)
flags.DEFINE_integer("epochs", 30, "At most.", lower_bound=1)
flags.DEFINE_integer("patience", 1, "Epochs without a better AUC before it stops.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")


def kept(output: str | None) -> list[dict]:
    """The rows that the output file has."""
    path = pathlib.Path(output) if output else None
    return json.loads(path.read_text())["rows"] if path and path.exists() else []


def main():
    table = ctr_table.make_table(load_dataset(FLAGS.dataset, FLAGS.data_dir))
    if FLAGS.ratings:
        import ctr_ratings

        table = ctr_ratings.with_ratings(table)
    fit = ctr_fit.Fit(
        FLAGS.learning_rate,
        FLAGS.last_epochs,
        FLAGS.batch_size,
        FLAGS.epochs,
        FLAGS.patience,
        FLAGS.shuffled_labels,
    )
    for interaction in FLAGS.interaction:
        is_dcn = {"cross_layers": FLAGS.cross_layers} if interaction == "dcn" else {}
        config = RankerConfig(
            interaction,
            dim=FLAGS.dim,
            hidden=tuple(map(int, FLAGS.hidden)),
            dropout=FLAGS.dropout,
            l2=FLAGS.l2,
            **is_dcn,
        )
        for seed in map(int, FLAGS.seeds):
            row = ctr_fit.run(table, config, fit, seed, FLAGS.part)
            row = {"name": FLAGS.name, **row, **provenance()}
            shown = row["metrics"]["none"]
            print(
                f"{FLAGS.name}, {interaction}, seed {seed}: AUC {shown['auc']:.4f}, LogLoss "
                f"{shown['log_loss']:.4f}, calibration error "
                + ", ".join(
                    f"{found['calibration_error']:.4f} ({name})"
                    for name, found in row["metrics"].items()
                ),
                flush=True,
            )
            if FLAGS.output:
                key = ("name", "interaction", "seed", "part")
                others = [
                    other
                    for other in kept(FLAGS.output)
                    if any(other[name] != row[name] for name in key)
                ]
                rows = sorted([*others, row], key=lambda row: [str(row[name]) for name in key])
                write_result(FLAGS.output, {"rows": rows})


if __name__ == "__main__":
    script.run(main)
