"""Rankers against a published table: click-through-rate prediction on `ctr-1m`.

    python experiments/studies/ctr.py --flagfile=experiments/flags/ranking/ctr_1m.flags \
        --data_dir=ml-1m --part=test --output=experiments/results/ranking/ctr_1m.json

A check of the networks and no recommendation: the rows are ratings that users chose to give, in a
random order, so a model sees a user's later ratings before earlier ones (`ctr_table.py`). Trains on
eight tenths, stops when the AUC of the validation tenth no longer rises, and reads the test tenth
once, at the end. Probabilities are calibrated on validation. One row of results for each network
and seed; a row that the output file has with this name, network and seed is replaced.
"""

import dataclasses
import json
import pathlib
import time

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
import ctr_table
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from twotower.bundle.provenance import provenance, write_result
from twotower.data import load_dataset
from twotower.ranking.config import INTERACTIONS, RankerConfig
from twotower.ranking.multi_task import masked_loss
from twotower.ranking.ranker import Ranker, make_ranker
from twotower.tf import tf

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
flags.DEFINE_float("learning_rate", 0.003, "Of Adam.", lower_bound=0)
flags.DEFINE_integer("batch_size", 4096, "Rows of a step.", lower_bound=1)
flags.DEFINE_integer("epochs", 30, "At most.", lower_bound=1)
flags.DEFINE_integer("patience", 1, "Epochs without a better AUC before it stops.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")

HEAD = "relevance"


def batches(
    columns: dict[str, np.ndarray], labels: np.ndarray, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Shuffled batches of an epoch, in another order in each: `(columns, head -> labels)`.

    The rows are gathered by batches; a dataset of single rows would take longer than the training.
    """
    held = {name: tf.constant(values) for name, values in columns.items()}
    target = tf.constant(labels)

    def gather(rows: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        taken = {name: tf.gather(values, rows) for name, values in held.items()}
        return taken, {HEAD: tf.gather(target, rows)}

    rows = tf.data.Dataset.range(len(labels)).shuffle(len(labels), seed)
    return rows.batch(min(batch_size, len(labels)), drop_remainder=True).map(gather).prefetch(2)


def logits(ranker: Ranker, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Of all rows, `[num_rows]` float64."""
    return ranker.predict(columns, batch_size=16_384, verbose=0)[HEAD].astype(np.float64)


class BestAuc(tf.keras.callbacks.Callback):
    """Stops when the AUC of validation no longer rises, with the weights of the best epoch."""

    def __init__(self, columns: dict[str, np.ndarray], labels: np.ndarray, patience: int) -> None:
        super().__init__()
        self.columns, self.labels, self.patience = columns, labels, patience
        self.aucs: list[float] = []
        self.best: list[np.ndarray] = []

    def on_epoch_end(self, epoch, logs=None):
        auc = float(roc_auc_score(self.labels, logits(self.model, self.columns)))
        if not self.aucs or auc > max(self.aucs):
            self.best = self.model.get_weights()
        self.aucs.append(auc)
        print(f"  epoch {epoch + 1}: loss {logs['loss']:.4f}, AUC {auc:.4f}", flush=True)
        if len(self.aucs) - 1 - int(np.argmax(self.aucs)) >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self.model.set_weights(self.best)


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015) over bins of equal width.

    The mean over rows of |share of positives - mean probability| of the row's bin.

    >>> calibration_error(np.array([0, 1, 1, 1]), np.array([0.5, 0.5, 0.9, 0.9]))
    0.05
    """
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    gap = np.bincount(which, labels - probabilities, bins)
    return round(float(np.abs(gap).sum() / len(labels)), 12)


def metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """AUC, LogLoss and the expected calibration error."""
    return {
        "auc": float(roc_auc_score(labels, probabilities)),
        "log_loss": float(log_loss(labels, probabilities)),
        "calibration_error": calibration_error(labels, probabilities),
    }


def calibrations(found: np.ndarray, labels: np.ndarray) -> dict:
    """Maps from logits to probabilities: none but the sigmoid, Platt's and an isotonic one.

    Args:
        found: Logits of the validation rows.
        labels: Their labels.
    """
    platt = LogisticRegression(C=1e6).fit(found[:, None], labels)
    # No probability of 0 or 1, of which a single wrong row would cost infinitely much.
    least = 0.5 / len(labels)
    isotonic = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip")
    isotonic.fit(found, labels)
    return {
        "none": lambda x: 1 / (1 + np.exp(-x)),
        "platt": lambda x: platt.predict_proba(x[:, None])[:, 1],
        "isotonic": isotonic.predict,
    }


def run(table: ctr_table.Table, config: RankerConfig, seed: int) -> dict:
    """Trains once; a row of results."""
    tf.keras.utils.set_random_seed(seed)
    begun = time.process_time()
    train, validation = (table.rows(part) for part in ("train", "validation"))
    labels = table.labels[train]
    if FLAGS.shuffled_labels:
        labels = np.random.default_rng(seed).permutation(labels)
    ranker = make_ranker(table.inputs, config)
    ranker.compile(tf.keras.optimizers.Adam(FLAGS.learning_rate), loss={HEAD: masked_loss("logit")})
    best = BestAuc(table.take(validation), table.labels[validation], FLAGS.patience)
    ranker.fit(
        batches(table.take(train), labels, FLAGS.batch_size, seed),
        epochs=FLAGS.epochs,
        callbacks=[best],
        verbose=0,
    )
    seconds = time.process_time() - begun
    maps = calibrations(logits(ranker, best.columns), best.labels)
    rows = table.rows(FLAGS.part)
    found = logits(ranker, table.take(rows))
    return {
        "name": FLAGS.name,
        "interaction": config.interaction,
        "seed": seed,
        "protocol": "ctr-1m",
        "part": FLAGS.part,
        "num_rows": {part: len(table.rows(part)) for part in ctr_table.PARTS},
        "metrics": {name: metrics(table.labels[rows], map_(found)) for name, map_ in maps.items()},
        "validation_auc": [round(auc, 5) for auc in best.aucs],
        "parameters": ranker.count_params(),
        "cpu_seconds": round(seconds, 1),
        "config": dataclasses.asdict(config),
    }


def kept(output: str | None) -> list[dict]:
    """The rows that the output file has."""
    path = pathlib.Path(output) if output else None
    return json.loads(path.read_text())["rows"] if path and path.exists() else []


def main():
    table = ctr_table.make_table(load_dataset(FLAGS.dataset, FLAGS.data_dir))
    if FLAGS.ratings:
        import ctr_ratings

        table = ctr_ratings.with_ratings(table)
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
            row = {**run(table, config, seed), **provenance()}
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
