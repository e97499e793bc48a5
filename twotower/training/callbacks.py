"""What happens before a step and at the end of an epoch, and a line of progress within it."""

import sys
import time
from collections.abc import Callable

import numpy as np
from absl import logging

from twotower.objective.config import MiningConfig
from twotower.objective.mining import Miner
from twotower.tf import tf
from twotower.training.checkpoints import FitResult
from twotower.training.training import Training


class Pace(tf.keras.callbacks.Callback):
    """How long the rest takes, from how long the steps since the first one took.

    The first step of a process compiles the graph and says nothing about the others.

    Args:
        done: Epochs that were done before.
        epochs: Epochs to do in all.
        steps: Steps of an epoch.

        pace = Pace(done=0, epochs=10, steps=100)
        model.fit(batches, epochs=10, callbacks=[pace])
        pace.left(3.5)  # seconds, in the middle of the fourth epoch
    """

    def __init__(self, done: int, epochs: int, steps: int) -> None:
        super().__init__()
        self.epochs, self.first = epochs, done + 1 / steps
        self.begun: float | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self.begun is None:
            self.begun = time.perf_counter()

    def left(self, done: float) -> float | None:
        """Seconds to the end of the last epoch, validation included.

        Args:
            done: Epochs done by now, and the part of the current one.

        Returns:
            None before the second step.
        """
        if self.begun is None or done <= self.first:
            return None
        elapsed = time.perf_counter() - self.begun
        return elapsed * (self.epochs - done) / (done - self.first)


def duration(seconds: float) -> str:
    """Seconds as a short text.

    >>> [duration(seconds) for seconds in (4.4, 89.0, 90.0, 5400.0)]
    ['4 s', '89 s', '2 min', '1 h 30 min']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Mining(tf.keras.callbacks.Callback):
    """Mines hard negatives anew before the steps that are due.

    Args:
        training: The model with its data.
        miner: That of the training.
        config: When to mine.
        result: Its `mining_seconds` are counted.

        mining = Mining(training, training.miner, MiningConfig(every=200), result)
        training.model.fit(training.batches(), epochs=10, callbacks=[mining])
    """

    def __init__(
        self, training: Training, miner: Miner, config: MiningConfig, result: FitResult
    ) -> None:
        super().__init__()
        self.training, self.miner, self.config, self.result = training, miner, config, result

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        step = int(self.model.optimizer.iterations.numpy())
        has_lists = self.miner.lists is not None
        # A resumed training has no lists until it mines, whether a mining is due or not.
        if self.config.is_due(step) or (not has_lists and step > self.config.warmup):
            begun = time.perf_counter()
            self.training.mine()
            self.result.mining_seconds += time.perf_counter() - begun


class EveryEpoch(tf.keras.callbacks.Callback):
    """Validates, keeps the best weights, saves a checkpoint, stops early, and logs a line.

    Args:
        training: The model with its data.
        result: Filled in at the end of each epoch.
        save: Writes a checkpoint; called with whether this epoch's weights are the ones to keep.
        select: Whether validation picks the epoch.
        pace: How long the rest takes.

        result, pace = FitResult(metric="recall@100"), Pace(0, epochs=10, steps=100)
        every = EveryEpoch(training, result, save, select=True, pace=pace)
        training.model.fit(training.batches(), epochs=10, callbacks=[pace, every])
    """

    def __init__(
        self,
        training: Training,
        result: FitResult,
        save: Callable[[bool], None],
        select: bool,
        pace: Pace,
    ) -> None:
        super().__init__()
        self.training, self.result = training, result
        self.save, self.select, self.pace = save, select, pace

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.started, self.epoch = time.perf_counter(), epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
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

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        # FactorizedTopK runs inside the epoch. Its time does not count as training time, and its
        # item vectors are those of the last refresh, so they are refreshed first.
        self.paused = time.perf_counter()
        self.training.refresh_topk()

    def on_test_end(self, logs: dict[str, float] | None = None) -> None:
        self.started += time.perf_counter() - self.paused

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        config, result = self.training.recipe.fit, self.result
        seconds = time.perf_counter() - self.started
        result.seconds += seconds
        result.epoch = epoch + 1
        result.examples_per_second = len(self.training.examples) * result.epoch / result.seconds
        entry = self._entry(logs, seconds)
        better = not self.select
        # The last epoch of the schedule is always validated; otherwise its weights never would be.
        due = result.epoch % config.validate_every == 0 or result.epoch == config.epochs
        if self.select and due:
            better = self._validate(entry, logs)
        result.log.append(entry)
        self.save(better)
        logging.info("%s", self._line(entry))

    def _entry(self, logs: dict[str, float], seconds: float) -> dict:
        """The log's entry of an epoch, before its validation."""
        entry = {
            "epoch": self.result.epoch,
            "loss": float(logs["loss"]),
            "seconds": round(seconds, 2),
        }
        if "val_loss" in logs:  # with FactorizedTopK
            entry["val_loss"] = float(logs["val_loss"])
        entry |= {
            f"{name}+seen": float(value)
            for name, value in logs.items()
            if name.startswith("val_factorized_top_k")
        }
        if self.training.miner is not None and self.training.miner.num_drawn:
            entry["mined"] = self.training.miner.num_mined / self.training.miner.num_drawn
        return entry

    def _validate(self, entry: dict, logs: dict[str, float]) -> bool:
        """Adds validation metrics to the entry, stops the training if it gets no better, and
        returns whether these weights are the ones to keep."""
        config, result = self.training.recipe.fit, self.result
        metrics = self.training.validate()
        entry |= {name: value["mean"] for name, value in metrics.items()}
        figure = metrics[result.metric]["mean"]
        logs[f"val_{result.metric}"] = figure
        better = figure > result.best or not config.keep_best
        if better:
            result.best, result.best_epoch, result.validation = figure, result.epoch, metrics
        late = result.epoch - result.best_epoch >= config.patience > 0
        result.stopped = self.model.stop_training = late
        return better

    def _line(self, entry: dict) -> str:
        """The log's line of an epoch, such as `epoch 3/10, loss 4.21, ndcg@10 0.2, 5.0 s`."""
        shown = [f"epoch {entry['epoch']}/{self.pace.epochs}", f"loss {entry['loss']:.4f}"]
        figures = dict.fromkeys((self.result.metric, "ndcg@10"))
        shown += [f"{name} {entry[name]:.4f}" for name in figures if name in entry]
        shown.append(f"{entry['seconds']:.1f} s")
        left = self.pace.left(entry["epoch"])
        if left and not self.result.stopped:
            at_most = "at most " if self.select and self.training.recipe.fit.patience else ""
            shown.append(f"{at_most}{duration(left)} left")
        return ", ".join(shown)


class Progress(tf.keras.callbacks.Callback):
    """One line within an epoch: how far the training is, and how long the rest takes.

    It is overwritten in place, and removed when the epoch ends.

    Args:
        num_examples: Examples of an epoch.
        batch_size: Examples of a step.
        pace: How long the rest takes.
        write: Shows a line in place of the one before; "" takes it away.
        every: Seconds from one line to the next.

        progress = Progress(100_000, 1024, pace, write=lambda line: print(line, end="\\r"))
        model.fit(batches, epochs=10, callbacks=[pace, progress])
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        pace: Pace,
        write: Callable[[str], None],
        every: float = 0.2,
    ) -> None:
        super().__init__()
        self.num_examples, self.batch_size, self.pace = num_examples, batch_size, pace
        self.write, self.every = write, every

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch, self.begun, self.shown = epoch, time.perf_counter(), 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        now = time.perf_counter()
        if now - self.shown < self.every:
            return
        self.shown = now
        examples = min((batch + 1) * self.batch_size, self.num_examples)
        share = examples / self.num_examples
        speed = examples / (now - self.begun)
        left = self.pace.left(self.epoch + share)
        self.write(
            f"epoch {self.epoch + 1}/{self.pace.epochs} {share:4.0%}, loss {logs['loss']:.4f}, "
            f"{speed:,.0f} examples/s" + (f", {duration(left)} left" if left else "")
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.write("")

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.write("")


def line_writer() -> Callable[[str], None] | None:
    """A function that shows a line in place of the one before, on a terminal or in a notebook; None
    elsewhere."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):  # not only imported: this process answers a notebook
        from IPython.display import display

        handle = display({"text/plain": ""}, raw=True, display_id=True)
        return lambda line: handle.update({"text/plain": line}, raw=True)
    if sys.stderr.isatty():
        return lambda line: print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
    return None
