"""Fit: epochs from one checkpoint to the next, so that a training can be interrupted."""

import contextlib
import dataclasses
import functools
import json
import pathlib

from absl import logging

from twotower.evaluation.evaluate import telling_metric
from twotower.objective.mining import MiningConfig
from twotower.storage import paths
from twotower.tf import tf
from twotower.training.callbacks import EveryEpoch, FitResult, Pace, Progress, line_writer
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


def _differences(saved: dict, recipe: Recipe) -> list[str]:
    """The fields in which a checkpoint's recipe differs, such as `fit.seed: 0 there, 1 here`."""
    with contextlib.suppress(TypeError, ValueError):  # a recipe that is refused by now
        saved = Recipe.from_json(saved).to_json()
    return _differing(*(json.loads(json.dumps(parts)) for parts in (saved, recipe.to_json())))


def _differing(there: dict, here: dict, prefix: str = "") -> list[str]:
    found = []
    for name in here | there:
        old, new = (values.get(name, "nothing") for values in (there, here))
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differing(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {old} there, {new} here")
    return found


def _log_more_epochs(saved: dict, config: FitConfig, result: FitResult) -> None:
    """Logs what more epochs change, if the recipe asks for more than the checkpoint's did."""
    before = saved.get("fit", {}).get("epochs", config.epochs)
    if before < config.epochs and result.stopped:
        logging.info("early stopping ended this training; more epochs do not change that")
    elif before < config.epochs and config.cosine:
        logging.info(
            "epochs grow from %d to %d: the learning rate goes on from where it stands at this "
            "step of %d epochs, so the result is not that of %d epochs in one go",
            before,
            *[config.epochs] * 3,
        )


def _check_same(workdir: pathlib.Path, saved: dict, recipe: Recipe, data: str) -> None:
    """Raises ValueError if a checkpoint has other data or another recipe. A recipe may differ in
    having more epochs."""
    anew = f"Take another --workdir, or delete {workdir / 'checkpoints'} to start anew."
    of_recipe = json.loads(saved["recipe"])
    differences = _differences(of_recipe, recipe)
    if of_recipe.get("fit", {}).get("epochs", recipe.fit.epochs) < recipe.fit.epochs:
        differences = [text for text in differences if not text.startswith("fit.epochs:")]
    if differences:
        raise ValueError(
            f"{workdir} holds a checkpoint of another recipe ({'; '.join(differences)}). Only "
            f"epochs can grow. {anew}"
        )
    if saved.get("data", data) != data:
        raise ValueError(
            f"{workdir} holds a checkpoint of other training rows (another protocol or part of "
            f"it, other data, or another warm start). {anew}"
        )


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
        select: Whether validation picks the epoch. Without, the last epoch counts: so does a refit
            on all rows, whose validation rows are training rows now.
        stop_after: Stop after so many epochs of the schedule, as a refit does at the best epoch.
        tensorboard: Whether to log for TensorBoard.

    Raises:
        ValueError: The workdir holds a checkpoint of another recipe (the message names what
            differs), or of other data; it has a name that TensorFlow would not find again
            (`paths.literal`); or the loss or a weight is not finite after a step, which ends the
            training.
        KeyboardInterrupt: Ctrl-C; the message says after which epoch the same call goes on.
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
        _check_same(workdir, saved, training.recipe, data)
        last.checkpoint.restore(last.latest_checkpoint).assert_consumed()
        result = FitResult(**saved["result"])
        if training.frequency is not None:
            training.frequency.load(stream(result.epoch))
        # Not the dropout of the first epoch once more: TensorFlow keeps no state of it.
        tf.keras.utils.set_random_seed(config.seed + result.epoch)
        logging.info("continuing after epoch %d of %s", result.epoch, workdir)
        _log_more_epochs(json.loads(saved["recipe"]), config, result)

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
        pace = Pace(result.epoch, epochs, steps)
        callbacks: list[tf.keras.callbacks.Callback] = [pace]
        if write := line_writer():
            batch_size = training.recipe.examples.batch_size
            callbacks.append(Progress(len(training.examples), batch_size, pace, write))
        callbacks.append(EveryEpoch(training, mining, result, save, select, pace))
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
                verbose=0,
            )

        try:
            if num == 1:
                run(training.batches(first), first, epochs)
            for epoch in range(first, epochs if num > 1 else first):
                # Keras does not see where an epoch of a distributed dataset ends: one `fit` each.
                batches = model.distribute_strategy.distribute_datasets_from_function(
                    functools.partial(lambda of, _: training.batches(of, num), epoch)
                )
                run(batches, epoch, epoch + 1, training.num_batches(epoch))
                if result.stopped:
                    break
        except KeyboardInterrupt:
            done = result.log[-1]["epoch"] if result.log else 0
            goes_on = f"after epoch {done}" if done else "from the start"
            raise KeyboardInterrupt(
                f"interrupted in epoch {done + 1} of {epochs}. The same command goes on {goes_on}."
            ) from None
    if best.latest_checkpoint:
        best.checkpoint.restore(best.latest_checkpoint).expect_partial()
    return result
