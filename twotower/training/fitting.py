"""Fit: epochs with validation, early stopping, checkpoints, resume and TensorBoard."""

import dataclasses
import functools
import json
import pathlib
import time

import numpy as np
from absl import logging

from twotower.evaluation.evaluate import telling_metric
from twotower.objective.mining import MiningConfig
from twotower.storage import paths
from twotower.tf import tf
from twotower.training.recipe import FitConfig, Recipe
from twotower.training.trainer import Training

# Largest share of all steps that a warm-up may take. A short training would end within a warm-up
# that is not cut.
WARMUP_SHARE = 0.4


def make_optimizer(config: FitConfig, steps_per_epoch: int) -> tf.keras.optimizers.Optimizer:
    """The optimiser with its learning rate over time."""
    rate: float | tf.keras.optimizers.schedules.LearningRateSchedule = config.learning_rate
    if config.cosine:
        steps = config.epochs * steps_per_epoch
        warmup = min(config.warmup_steps, int(WARMUP_SHARE * steps))
        if warmup < config.warmup_steps:
            logging.warning(
                "warmup_steps=%d of %d steps in all: the learning rate rises over %d of them.",
                config.warmup_steps,
                steps,
                warmup,
            )
        rate = tf.keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0,
            decay_steps=max(1, steps - warmup),
            alpha=0.05,
            warmup_target=config.learning_rate,
            warmup_steps=warmup,
        )
    if config.optimizer == "adam":
        return tf.keras.optimizers.Adam(rate)
    if config.optimizer == "adamw":
        return tf.keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    return tf.keras.optimizers.Adagrad(rate)


def mining_of(recipe: Recipe, steps: int) -> MiningConfig:
    """The recipe's mining, with a warm-up cut to fit a training of `steps` steps."""
    mining, most = recipe.mining, int(WARMUP_SHARE * steps)
    if recipe.negatives.hard_negative_share and mining.warmup > most:
        logging.warning(
            "mining.warmup=%d of %d steps in all: the first mining is at step %d.",
            mining.warmup,
            steps,
            most,
        )
        return dataclasses.replace(mining, warmup=most)
    return mining


def _log_what_comes_too_late(recipe: Recipe, select: bool) -> None:
    """Logs each setting that has no effect in so few epochs."""
    config = recipe.fit
    epochs = f"of {config.epochs} epochs"
    for is_late, text in (
        (
            select and config.patience >= config.epochs,
            f"patience={config.patience} {epochs}: nothing stops early.",
        ),
        (
            select and config.validate_every > config.epochs,
            f"validate_every={config.validate_every} {epochs}: the last epoch alone is validated.",
        ),
        (
            select and config.topk_every > config.epochs,
            f"topk_every={config.topk_every} {epochs}: FactorizedTopK is never computed.",
        ),
    ):
        if is_late:
            logging.info("%s", text)


@dataclasses.dataclass
class FitResult:
    """What a fit did; also the state that a resumed one continues from.

    Attributes:
        epoch: Epochs done.
        best_epoch: The epoch (from 1) that is kept: with the best validation figure, unless the
            recipe keeps the last; 0 before the first.
        best: Its validation figure.
        seconds: Wall time of training without validation, all sessions together.
        examples_per_second: Over that time.
        mining_seconds: Of these, what mining took.
        stopped: Whether early stopping ended it.
        log: One entry an epoch: epoch, loss (mean over its examples), seconds and, where validated,
            the metrics' means.
        validation: All metrics of the best epoch, with intervals.
        metric: Name of the metric that selects the epoch: the recipe's, or the nearest one that can
            tell models apart in a small catalogue (`evaluation.telling_metric`).
    """

    epoch: int = 0
    best_epoch: int = 0
    best: float = -np.inf
    seconds: float = 0.0
    examples_per_second: float = 0.0
    mining_seconds: float = 0.0
    stopped: bool = False
    log: list[dict] = dataclasses.field(default_factory=list)
    validation: dict = dataclasses.field(default_factory=dict)
    metric: str = ""


class _EveryEpoch(tf.keras.callbacks.Callback):
    """Validates, keeps the best weights, saves a checkpoint, stops early."""

    def __init__(
        self, training: Training, mining: MiningConfig, result: FitResult, save, select: bool
    ) -> None:
        super().__init__()
        self.training, self.mining, self.result = training, mining, result
        self.save, self.select = save, select

    def on_epoch_begin(self, epoch, logs=None):
        self.started, self.epoch = time.perf_counter(), epoch

    def on_train_batch_begin(self, batch, logs=None):
        training = self.training
        if training.miner is not None:
            step = int(self.model.optimizer.iterations.numpy())
            if self.mining.is_due(step) or (
                training.miner.lists is None and step > self.mining.warmup
            ):  # the second after a resume
                begun = time.perf_counter()
                training.mine()
                self.result.mining_seconds += time.perf_counter() - begun

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            raise ValueError(self._diverged(batch + 1, logs["loss"]))

    def _diverged(self, step: int, loss: float) -> str:
        """The error message for a loss or a weight that is not finite."""
        recipe, model = self.training.recipe, self.model
        parts = {"temperature": model.task}
        for tower in (model.query_tower, model.item_tower):
            parts |= {f"{tower.name}/{part.name}": part for part in (*tower.features, tower.head)}
        wrong = [
            name
            for name, part in parts.items()
            if not all(np.isfinite(weight.numpy()).all() for weight in part.trainable_weights)
        ]
        return (
            f"step {step} of epoch {self.epoch + 1}: the loss is {loss}; parts with weights that "
            f"are not finite: {', '.join(wrong) or 'none'}. In the first step, check the initial "
            "weights and the ratings. In later steps, the update was too large: see "
            f"learning_rate={recipe.fit.learning_rate:g} ({recipe.fit.optimizer}), "
            f"temperature={recipe.task.temperature:g}. The checkpoint of the epoch before is "
            "intact."
        )

    def on_test_begin(self, logs=None):
        # FactorizedTopK runs inside the epoch: its time is not training's, and neither is the
        # table of item vectors, which is as old as the last refresh.
        self.paused = time.perf_counter()
        self.training.refresh_topk()

    def on_test_end(self, logs=None):
        self.started += time.perf_counter() - self.paused

    def on_epoch_end(self, epoch, logs=None):
        config, result = self.training.recipe.fit, self.result
        seconds = time.perf_counter() - self.started
        result.seconds += seconds
        result.epoch = epoch + 1
        result.examples_per_second = len(self.training.examples) * result.epoch / result.seconds
        entry = {"epoch": epoch + 1, "loss": float(logs["loss"]), "seconds": round(seconds, 2)}
        if "val_loss" in logs:  # with FactorizedTopK
            entry["val_loss"] = float(logs["val_loss"])
        entry |= {
            f"{name}+seen": float(value)
            for name, value in logs.items()
            if name.startswith("val_factorized_top_k")
        }
        if self.training.miner is not None and self.training.miner.num_places:
            entry["mined"] = self.training.miner.num_mined / self.training.miner.num_places
        better = not self.select
        # The schedule's last epoch always: else what ends there would never be judged.
        due = result.epoch % config.validate_every == 0 or result.epoch == config.epochs
        if self.select and due:
            metrics = self.training.validate()
            entry |= {name: value["mean"] for name, value in metrics.items()}
            figure = metrics[result.metric]["mean"]
            logs[f"val_{result.metric}"] = figure
            if better := figure > result.best or not config.keep_best:
                result.best, result.best_epoch, result.validation = figure, epoch + 1, metrics
            late = result.epoch - result.best_epoch >= config.patience > 0
            result.stopped = self.model.stop_training = late
        result.log.append(entry)
        self.save(better)
        logging.info("%s", _line(entry, config.epochs, result.metric))


def _line(entry: dict, epochs: int, metric: str) -> str:
    shown = [f"epoch {entry['epoch']}/{epochs}", f"loss {entry['loss']:.4f}"]
    figures = dict.fromkeys((metric, "ndcg@10"))
    shown += [f"{name} {entry[name]:.4f}" for name in figures if name in entry]
    return ", ".join([*shown, f"{entry['seconds']:.1f} s"])


def _is_of(recipe: Recipe, saved: dict) -> bool:
    """Whether a checkpoint's recipe is this one. One that is refused by now is another."""
    try:
        return Recipe.from_json(saved) == recipe
    except (TypeError, ValueError):
        return False


def fit(
    training: Training,
    workdir: str | pathlib.Path,
    *,
    select: bool = True,
    stop_after: int | None = None,
    tensorboard: bool = False,
    verbose: int = 0,
) -> FitResult:
    """Trains to the best epoch and leaves its weights in `training.model`.

    A checkpoint is written after each epoch. Called again with the same workdir, it continues
    after the last finished epoch, with the optimiser's state, so that an interrupt costs at most
    one epoch. Batches are those of an uninterrupted run; what the towers drop at random is drawn
    anew, and hard negatives are mined anew, from the weights of that moment.

    Args:
        training: The model with its data.
        workdir: Folder for `checkpoints/` and `tensorboard/`.
        select: Whether validation picks the epoch. Without, the last epoch counts: so does a refit
            on all rows, whose validation rows are training rows now.
        stop_after: Stop after so many epochs of the schedule, as a refit does at the best epoch.
        tensorboard: Whether to log for TensorBoard.
        verbose: Of Keras' progress bar: 0 none, 1 a bar, 2 a line an epoch.

    Raises:
        ValueError: The workdir holds a checkpoint of another recipe, or of other data; it has a
            name that TensorFlow would not find again (`paths.literal`); or the loss or a weight is
            not finite after a step, which ends the training.
    """
    workdir = paths.literal(workdir)
    config, model = training.recipe.fit, training.model
    steps = -(-len(training.examples) // training.recipe.examples.batch_size)
    mining = mining_of(training.recipe, config.epochs * steps)
    _log_what_comes_too_late(training.recipe, select)
    with model.distribute_strategy.scope():
        model.compile(optimizer=make_optimizer(config, steps))
        if config.optimizer == "adamw":  # a temperature has no zero to decay to
            model.optimizer.exclude_from_weight_decay(var_list=model.task.trainable_weights)
        model.optimizer.build(model.trainable_variables)
    result = FitResult()
    recipe = json.dumps(training.recipe.to_json(), sort_keys=True)
    data = training.fingerprint()
    state = tf.Variable("", dtype=tf.string, trainable=False)
    weights = [*model.query_tower.weights, *model.item_tower.weights]
    # A learned temperature, the memory of past batches, and the count of the stream.
    others = [*model.task.trainable_weights, *model.negatives.variables]
    last = tf.train.CheckpointManager(
        tf.train.Checkpoint(weights=weights, others=others, optimizer=model.optimizer, state=state),
        str(workdir / "checkpoints" / "last"),
        max_to_keep=1,
    )
    best = tf.train.CheckpointManager(
        tf.train.Checkpoint(weights=weights), str(workdir / "checkpoints" / "best"), max_to_keep=1
    )

    def stream(epoch: int) -> pathlib.Path:
        return workdir / "checkpoints" / f"frequency-{epoch}.npz"

    def save(better: bool) -> None:
        if better:
            best.save()
        if training.frequency is not None:  # a file an epoch, for the checkpoint may not come
            stream(result.epoch).parent.mkdir(parents=True, exist_ok=True)
            training.frequency.save(stream(result.epoch))
        state.assign(
            json.dumps({"recipe": recipe, "data": data, "result": dataclasses.asdict(result)})
        )
        last.save()
        stream(result.epoch - 1).unlink(missing_ok=True)

    if last.latest_checkpoint:
        # Before any weight is touched: those of another recipe would not fit.
        reader = tf.train.load_checkpoint(last.latest_checkpoint)
        saved = json.loads(reader.get_tensor("state/.ATTRIBUTES/VARIABLE_VALUE"))
        if not _is_of(training.recipe, json.loads(saved["recipe"])):
            raise ValueError(
                f"{workdir} holds a checkpoint of another recipe. Take another --workdir, or "
                f"delete {workdir / 'checkpoints'} to start anew."
            )
        if saved.get("data", data) != data:
            raise ValueError(
                f"{workdir} holds a checkpoint of other training rows (another protocol or part of "
                "it, other data, or another warm start). Take another --workdir, or delete "
                f"{workdir / 'checkpoints'} to start anew."
            )
        last.checkpoint.restore(last.latest_checkpoint).assert_consumed()
        result = FitResult(**saved["result"])
        if training.frequency is not None:
            training.frequency.load(stream(result.epoch))
        # Not the dropout of the first epoch once more: TensorFlow keeps no state of it.
        tf.keras.utils.set_random_seed(config.seed + result.epoch)
        logging.info("continuing after epoch %d of %s", result.epoch, workdir)

    result.metric = telling_metric(config.metric, training.split) if select else config.metric
    if result.metric != config.metric:
        logging.warning(
            "%s finds nearly everything among %d candidates, so %s selects the epoch",
            config.metric,
            len(training.split.candidates),
            result.metric,
        )
    epochs = min(config.epochs, stop_after or config.epochs)
    if result.epoch < epochs and not result.stopped:
        callbacks = [_EveryEpoch(training, mining, result, save, select)]
        if tensorboard:
            callbacks.append(tf.keras.callbacks.TensorBoard(str(workdir / "tensorboard")))
        num, first = model.distribute_strategy.num_replicas_in_sync, result.epoch

        def run(batches, first: int, last: int, steps: int | None = None) -> None:
            model.fit(
                batches,
                steps_per_epoch=steps,
                epochs=last,
                initial_epoch=first,
                # Only where validation selects: a refit's cases are the test cases.
                validation_data=training.topk_batches() if config.topk_every and select else None,
                validation_freq=config.topk_every or 1,
                callbacks=callbacks,
                verbose=verbose,
            )

        if num == 1:
            run(training.batches(first), first, epochs)
        for epoch in range(first, epochs if num > 1 else first):
            # Keras has to be told where an epoch of a distributed dataset ends.
            batches = model.distribute_strategy.distribute_datasets_from_function(
                functools.partial(lambda of, _: training.batches(of, num), epoch)
            )
            run(batches, epoch, epoch + 1, training.num_batches(epoch))
            if result.stopped:
                break
    if best.latest_checkpoint:
        best.checkpoint.restore(best.latest_checkpoint).expect_partial()
    return result
