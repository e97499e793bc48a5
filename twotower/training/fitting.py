"""Fit: epochs from one checkpoint to the next, so that a training can be interrupted."""

import dataclasses
import functools
import pathlib

from absl import logging

from twotower.evaluation.evaluate import telling_metric
from twotower.objective.mining import MiningConfig
from twotower.storage import paths
from twotower.storage.holding import holding
from twotower.tf import tf
from twotower.training.adam import FusedAdam, FusedAdamW
from twotower.training.callbacks import EveryEpoch, Mining, Pace, Progress, line_writer
from twotower.training.checkpoints import Checkpoints, FitResult
from twotower.training.recipe import FitConfig, Recipe
from twotower.training.training import Training

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
            logging.info(
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
        return FusedAdam(rate)
    if config.optimizer == "adamw":
        return FusedAdamW(rate, weight_decay=config.weight_decay)
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


def fit(
    training: Training,
    workdir: str | pathlib.Path,
    *,
    select: bool = True,
    stop_after: int | None = None,
    tensorboard: bool = False,
) -> FitResult:
    """Trains to the best epoch and leaves its weights in `training.model`.

    A checkpoint is written after each epoch. Called again with the same workdir, it continues
    after the last finished epoch, with the optimiser's state, so that an interrupt costs at most
    one epoch. The batches are those of an uninterrupted run. Dropout is drawn anew, and hard
    negatives are mined anew from the current weights.

    The recipe may ask for more epochs than before; the training then continues. With `cosine` the
    learning rate had fallen for fewer epochs, and jumps to the value of the longer schedule at this
    step. So the result is close to that of a longer training, but not the same.

    A terminal or a notebook shows a line of progress within an epoch; each epoch logs a line.

    Args:
        training: The model with its data.
        workdir: Folder for `checkpoints/` and `tensorboard/`.
        select: Whether validation picks the epoch. Otherwise the last epoch counts, as in a refit,
            whose validation rows are training rows.
        stop_after: Stop after this many epochs of the schedule, as a refit does at the best epoch.
        tensorboard: Whether to log for TensorBoard.

    Raises:
        ValueError: The workdir holds a checkpoint of another recipe (the message names what
            differs), or of other data; it has a name that TensorFlow would not find again
            (`paths.literal`); another training is writing into it; or the loss or a weight is not
            finite after a step, which ends the training.
        KeyboardInterrupt: Ctrl-C; the message says after which epoch the same call goes on.
    """
    workdir = paths.literal(workdir)
    folder = workdir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)  # now, not after an epoch
    # Two trainings would overwrite each other's checkpoints, and restore them as their own.
    with holding(folder, "training"):
        return _fit(training, workdir, select, stop_after, tensorboard)


def _fit(
    training: Training,
    workdir: pathlib.Path,
    select: bool,
    stop_after: int | None,
    tensorboard: bool,
) -> FitResult:
    """`fit`, in a workdir that no other training writes into."""
    config, num_examples = training.recipe.fit, len(training.examples)
    steps = -(-num_examples // training.recipe.examples.batch_size)
    mining = mining_of(training.recipe, config.epochs * steps)
    _log_what_comes_too_late(training.recipe, select)
    _compile(training, steps)
    checkpoints = Checkpoints(training, workdir)
    result = checkpoints.resume()
    result.metric = _selecting_metric(training) if select else config.metric
    epochs = min(config.epochs, stop_after or config.epochs)
    if result.epoch < epochs and not result.stopped:
        pace = Pace(result.epoch, epochs, steps)
        callbacks: list[tf.keras.callbacks.Callback] = [pace]
        if write := line_writer():
            batch_size = training.recipe.examples.batch_size
            callbacks.append(Progress(num_examples, batch_size, pace, write))
        save = functools.partial(checkpoints.save, result)
        if (miner := training.miner) is not None:
            callbacks.append(Mining(training, miner, mining, result))
        callbacks.append(EveryEpoch(training, result, save, select, pace))
        if tensorboard:
            callbacks.append(tf.keras.callbacks.TensorBoard(str(workdir / "tensorboard")))
        try:
            _run(training, result, epochs, callbacks, select)
        except KeyboardInterrupt:
            done = result.log[-1]["epoch"] if result.log else 0
            goes_on = f"after epoch {done}" if done else "from the start"
            during = f"in epoch {done + 1} of {epochs}" if done < epochs else "after the last epoch"
            raise KeyboardInterrupt(
                f"interrupted {during}. The same command goes on {goes_on}."
            ) from None
    checkpoints.restore_best()
    return result


def _compile(training: Training, steps_per_epoch: int) -> None:
    """Gives the model an optimiser that has all its state, so that a checkpoint can restore it."""
    config, model = training.recipe.fit, training.model
    with model.distribute_strategy.scope():
        model.compile(optimizer=make_optimizer(config, steps_per_epoch))
        if config.optimizer == "adamw":  # a temperature has no zero to decay to
            model.optimizer.exclude_from_weight_decay(var_list=model.task.trainable_weights)
        model.optimizer.build(model.trainable_variables)


def _selecting_metric(training: Training) -> str:
    """The recipe's metric, or the nearest one that can tell models apart in this catalogue."""
    asked, split = training.recipe.fit.metric, training.split
    metric = telling_metric(asked, split)
    if metric != asked:
        logging.warning(
            "%s finds nearly everything among %d candidates, so %s selects the epoch",
            asked,
            len(split.candidates),
            metric,
        )
    return metric


def _run(
    training: Training,
    result: FitResult,
    epochs: int,
    callbacks: list[tf.keras.callbacks.Callback],
    select: bool,
) -> None:
    """The epochs after `result.epoch`, up to `epochs` or until early stopping."""
    config, model = training.recipe.fit, training.model
    num_replicas, first = model.distribute_strategy.num_replicas_in_sync, result.epoch

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
            verbose=0,
        )

    if num_replicas == 1:
        run(training.batches(first), first, epochs)
        return
    # Keras does not see where an epoch of a distributed dataset ends: one `fit` each.
    for epoch in range(first, epochs):
        batches = model.distribute_strategy.distribute_datasets_from_function(
            functools.partial(lambda of, _: training.batches(of, num_replicas), epoch)
        )
        run(batches, epoch, epoch + 1, training.num_batches(epoch))
        if result.stopped:
            return
