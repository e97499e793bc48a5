"""One training of a ranker on a table of `ctr-1m`, and its figures (AUC, LogLoss, calibration)."""

import dataclasses
import time

import ctr_table
import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from twotower.ranking.config import RankerConfig
from twotower.ranking.multi_task import masked_loss
from twotower.ranking.probability import binned, calibration_error
from twotower.ranking.ranker import Ranker, make_ranker
from twotower.tf import tf

HEAD = "relevance"
LAST_RATE = 0.3


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a ranker is trained.

    Attributes:
        learning_rate: Of Adam, constant but for the last epochs.
        last_epochs: From this epoch on, counted from 0, the learning rate is `LAST_RATE` of that.
        batch_size: Rows of a step.
        epochs: At most so many.
        patience: Epochs without a better AUC on validation before it stops.
        shuffled_labels: Train on the labels in random order, to see what chance gives.
    """

    learning_rate: float = 0.004
    last_epochs: int = 6
    batch_size: int = 4096
    epochs: int = 30
    patience: int = 1
    shuffled_labels: bool = False

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.learning_rate * (LAST_RATE if epoch >= self.last_epochs else 1)


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


def metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """AUC, LogLoss and the expected calibration error."""
    return {
        "auc": float(roc_auc_score(labels, probabilities)),
        "log_loss": float(log_loss(labels, probabilities)),
        "calibration_error": calibration_error(binned(probabilities, labels)),
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


def run(
    table: ctr_table.Table, config: RankerConfig, fit: Fit, seed: int, part: str = "validation"
) -> dict:
    """Trains once; a row of results, with the figures of a part.

    Args:
        table: The rows; only those of `part` are read beside train and validation.
        config: The network.
        fit: The training.
        seed: Seed of weights, dropout and the order of rows.
        part: `validation` or `test`.
    """
    tf.keras.utils.set_random_seed(seed)
    begun = time.process_time()
    train, validation = (table.rows(part) for part in ("train", "validation"))
    labels = table.labels[train]
    if fit.shuffled_labels:
        labels = np.random.default_rng(seed).permutation(labels)
    ranker = make_ranker(table.inputs, config)
    optimizer = tf.keras.optimizers.Adam(fit.learning_rate)
    ranker.compile(optimizer, loss={HEAD: masked_loss("logit")})
    best = BestAuc(table.take(validation), table.labels[validation], fit.patience)
    ranker.fit(
        batches(table.take(train), labels, fit.batch_size, seed),
        epochs=fit.epochs,
        callbacks=[best, tf.keras.callbacks.LearningRateScheduler(fit.rate)],
        verbose=0,
    )
    seconds = time.process_time() - begun
    maps = calibrations(logits(ranker, best.columns), best.labels)
    rows = table.rows(part)
    found = logits(ranker, table.take(rows))
    return {
        "interaction": config.interaction,
        "seed": seed,
        "protocol": "ctr-1m",
        "part": part,
        "num_rows": {part: len(table.rows(part)) for part in ctr_table.PARTS},
        "metrics": {name: metrics(table.labels[rows], map_(found)) for name, map_ in maps.items()},
        "validation_auc": [round(auc, 5) for auc in best.aucs],
        "parameters": ranker.count_params(),
        "cpu_seconds": round(seconds, 1),
        "config": dataclasses.asdict(config),
        "fit": dataclasses.asdict(fit),
    }
