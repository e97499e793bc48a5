"""Checkpoints: the state of a training after each epoch, from which the next call continues."""

import contextlib
import dataclasses
import json
import pathlib

import numpy as np
from absl import logging

from twotower.tf import tf
from twotower.training.recipe import FitConfig, Recipe
from twotower.training.training import Training


@dataclasses.dataclass
class FitResult:
    """What a training did. It is also the state from which an interrupted one continues.

    Attributes:
        epoch: Number of epochs done.
        best_epoch: Number of the kept epoch, counted from 1: the one with the best validation
            figure, unless the recipe keeps the last; 0 before the first.
        best: The validation figure of that epoch.
        seconds: Wall time of training without validation, all sessions together.
        examples_per_second: Examples divided by `seconds`.
        mining_seconds: The part of `seconds` that mining took.
        stopped: Whether early stopping ended the training.
        log: An entry for each epoch: epoch, loss (mean over its examples), seconds and, if it was
            validated, the means of the metrics.
        validation: All metrics of the best epoch, with intervals.
        metric: Name of the metric that selects the epoch: the recipe's, or the nearest one that can
            tell models apart in a small catalogue (`evaluate.telling_metric`).

        result = fit(training, "W")
        f"epoch {result.best_epoch} of {result.epoch}: {result.metric} {result.best:.4f}"
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


class Checkpoints:
    """Saves a training after each epoch, and continues it.

    `checkpoints/last` has all that the next epoch needs: weights, the optimiser's state, and the
    result so far, with the recipe and the data that it belongs to. `checkpoints/best` has the
    weights of the epoch that is kept.

    Args:
        training: The model with its data. Its weights and its optimiser's state exist already.
        workdir: Folder in which `checkpoints/` stands.

        checkpoints = Checkpoints(training, pathlib.Path("W"))
        result = checkpoints.resume()
        ...  # an epoch
        checkpoints.save(result, better=True)
    """

    def __init__(self, training: Training, workdir: pathlib.Path) -> None:
        self.training, self.workdir = training, workdir
        self._data = training.fingerprint()
        model = training.model
        self._state = tf.Variable("", dtype=tf.string, trainable=False)
        weights = [*model.query_tower.weights, *model.item_tower.weights]
        # A learned temperature, the memory of past batches, and the count of the stream.
        others = [*model.task.trainable_weights, *model.negatives.variables]
        self._last = self._manager(
            "last", 1, weights=weights, others=others, optimizer=model.optimizer, state=self._state
        )
        # No limit. Weights that `last` names must stay until it names others, and each kill in
        # between leaves further ones, which would push them out. `save` deletes the others.
        self._best = self._manager("best", None, weights=weights)
        self._kept = ""  # name of the checkpoint in `best` that `last` names

    def _manager(self, name: str, max_to_keep: int | None, **parts) -> tf.train.CheckpointManager:
        folder = str(self.workdir / "checkpoints" / name)
        return tf.train.CheckpointManager(tf.train.Checkpoint(**parts), folder, max_to_keep)

    def _frequency(self, epoch: int) -> pathlib.Path:
        """File of the streaming frequency. One an epoch, since the checkpoint may not follow."""
        return self.workdir / "checkpoints" / f"frequency-{epoch}.npz"

    def save(self, result: FitResult, better: bool) -> None:
        """Saves the state after epoch `result.epoch`.

        Args:
            result: What the training did so far.
            better: Whether this epoch's weights are the ones to keep.
        """
        if better:
            path = self._best.save(checkpoint_number=result.epoch)
            self._kept = pathlib.Path(path).name
        file, frequency = self._frequency(result.epoch), self.training.frequency
        if frequency is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            frequency.save(file)
        recipe = json.dumps(self.training.recipe.to_json(), sort_keys=True)
        state = {
            "recipe": recipe,
            "data": self._data,
            "result": dataclasses.asdict(result),
            "best": self._kept,
        }
        self._state.assign(json.dumps(state))
        self._last.save()
        for file in self._best_path.parent.glob("ckpt-*"):
            if not file.name.startswith(f"{self._kept}."):
                file.unlink()
        self._frequency(result.epoch - 1).unlink(missing_ok=True)

    def resume(self) -> FitResult:
        """Restores the last epoch and returns the result so far; a new one without a checkpoint.

        Raises:
            ValueError: A checkpoint of another recipe or of other data, or without the weights of
                the best epoch. No weight is changed then.
        """
        path, training = self._last.latest_checkpoint, self.training
        if not path:
            return FitResult()
        # Before any weight is changed: those of another recipe would not fit.
        reader = tf.train.load_checkpoint(path)
        saved = json.loads(reader.get_tensor("state/.ATTRIBUTES/VARIABLE_VALUE"))
        _check_same(self.workdir, saved, training.recipe, self._data)
        result = FitResult(**saved["result"])
        # Earlier versions kept one checkpoint in `best`, and stored no name.
        self._kept = saved.get("best", pathlib.Path(self._best.latest_checkpoint or "").name)
        if (self._kept or result.best_epoch) and not self._best_path.with_suffix(".index").exists():
            raise ValueError(
                f"{self.workdir} lacks the weights of epoch {result.best_epoch or result.epoch}, "
                f"the best one, in checkpoints/best. Was it copied in part? Copy all of it, or "
                f"delete {self.workdir / 'checkpoints'} to start anew."
            )
        self._last.checkpoint.restore(path).assert_consumed()
        if training.frequency is not None:
            training.frequency.load(self._frequency(result.epoch))
        config = training.recipe.fit
        # Otherwise dropout would repeat that of the first epoch: TensorFlow keeps no state of it.
        tf.keras.utils.set_random_seed(config.seed + result.epoch)
        logging.info("continuing after epoch %d of %s", result.epoch, self.workdir)
        _log_more_epochs(json.loads(saved["recipe"]), config, result)
        return result

    def restore_best(self) -> None:
        """Restores the weights of the epoch that is kept, if there is one."""
        if self._kept:
            self._best.checkpoint.restore(str(self._best_path)).expect_partial()

    @property
    def _best_path(self) -> pathlib.Path:
        """Path with which the names of the files of the kept weights begin."""
        return self.workdir / "checkpoints" / "best" / self._kept


def _differences(saved: dict, recipe: Recipe) -> list[str]:
    """The fields in which a checkpoint's recipe differs, such as `fit.seed: 0 there, 1 here`."""
    with contextlib.suppress(TypeError, ValueError):  # a recipe that is refused by now
        saved = Recipe.from_json(saved).to_json()
    return _differing(*(json.loads(json.dumps(parts)) for parts in (saved, recipe.to_json())))


def _differing(there: dict, here: dict, prefix: str = "") -> list[str]:
    """`_differences` of nested dictionaries; `prefix` is the path to them, such as `fit.`."""
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
