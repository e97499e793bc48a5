"""A training goes on where it was interrupted, and a checkpoint of something else is refused.

Slow are the dropout after a resume, and kills.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tiny
from small_trainings import QUIET, planted

from twotower.bundle.bundle import Bundle
from twotower.data.splits import make_split
from twotower.tf import tf
from twotower.training import checkpoints
from twotower.training.checkpoints import FitResult
from twotower.training.fitting import fit
from twotower.training.recipe import FitConfig, Recipe
from twotower.training.training import Training


def test_resume_continues_as_if_nothing_had_happened(tmp_path):
    """Also with what is not a weight: the stream's counts, the memory and a learned temperature."""

    def training(epochs):
        recipe = tiny.recipe(
            QUIET,
            task={"frequency": "streaming", "learned_temperature": True},
            negatives={"negatives": ("batch", "memory"), "memory_size": 300},
            fit={"validate_every": 2, "epochs": epochs},
        )
        return Training(tiny.dataset(), tiny.split(), recipe)

    expected = fit(training(3), tmp_path / "whole").log

    # Without a schedule, more epochs train on as if there had been as many from the start.
    first = training(1)
    assert fit(first, tmp_path / "parts").epoch == 1
    steps = int(first.model.optimizer.iterations)
    assert steps == -(-len(first.examples) // QUIET.examples.batch_size)

    second = training(3)
    result = fit(second, tmp_path / "parts")
    assert [entry["epoch"] for entry in result.log] == [1, 2, 3]
    assert int(second.model.optimizer.iterations) == 3 * steps
    # Order of examples, optimiser and weights all go on: the losses are those of one piece.
    losses = [[entry["loss"] for entry in log] for log in (result.log, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert result.seconds > sum(entry["seconds"] for entry in result.log) - 0.1
    assert second.frequency.time == 3 * len(second.examples)
    assert (second.model.negatives.memory.keys.numpy() >= 0).all()

    # Called once more, it has nothing to do and gives the best weights.
    third = training(3)
    again = fit(third, tmp_path / "parts")
    assert again.log == result.log
    keys = third.split.candidates
    np.testing.assert_array_equal(third.item_vectors(keys), second.item_vectors(keys))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    """Before any weight is touched: those of another recipe would not fit."""
    first = tiny.without_learning(Training(tiny.dataset(), tiny.split(), QUIET))
    fit(first, tmp_path, stop_after=1)
    other = tiny.recipe(QUIET, item={"id_dim": 12})
    with pytest.raises(ValueError, match=r"of another recipe \(item.id_dim: 16 there, 12 here\)"):
        fit(Training(tiny.dataset(), tiny.split(), other), tmp_path)
    # Other data with equal sizes: weights of something else.
    items = tiny.dataset().items
    renamed = items.assign(title=items.title.to_numpy()[::-1])
    data = dataclasses.replace(tiny.dataset(), items=renamed)
    with pytest.raises(ValueError, match="checkpoint of other training rows"):
        fit(Training(data, make_split(data, "random"), QUIET), tmp_path)
    # Another protocol, or other rows of it.
    of = [(data, tiny.split()), (tiny.dataset(), tiny.split("loo")), (tiny.dataset(), tiny.split())]
    prints = []
    for dataset, split in of:
        stand_in = types.SimpleNamespace(dataset=dataset, split=split, ancestor=None)
        prints.append(Training.fingerprint(stand_in))
    assert len({*prints}) == 3 and prints[-1] == first.fingerprint()


def saved_by(recipe: Recipe) -> dict:
    """What a checkpoint holds of its recipe."""
    return {"recipe": json.dumps(recipe.to_json()), "data": "the same"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fit": {"seed": 1}}, r"\(fit.seed: 0 there, 1 here\)"),  # with weights that would fit
        ({"fit": {"epochs": 2}}, r"\(fit.epochs: 3 there, 2 here\)"),
    ],
)
def test_another_recipe_is_named_by_what_differs(changes, named, tmp_path):
    here = tiny.recipe(QUIET, **changes)
    with pytest.raises(ValueError, match=f"checkpoint of another recipe {named}"):
        checkpoints._check_same(tmp_path, saved_by(QUIET), here, "the same")
    # More epochs do not make another recipe.
    more = tiny.recipe(QUIET, fit={"epochs": 4})
    checkpoints._check_same(tmp_path, saved_by(QUIET), more, "the same")


def test_a_checkpoint_of_before_a_field_was_known_goes_on(tmp_path, monkeypatch):
    """What it does not name has its default, as in bundles."""
    values = QUIET.to_json()
    del values["negatives"]["num_hardest"]
    saved = {"recipe": json.dumps(values), "data": "the same"}
    checkpoints._check_same(tmp_path, saved, QUIET, "the same")
    catalogue = {"negatives": ("catalogue",), "num_hardest": 7}
    other = tiny.recipe(QUIET, negatives=catalogue, task={"correction": "none"})
    with pytest.raises(ValueError, match="another recipe"):
        checkpoints._check_same(tmp_path, saved, other, "the same")
    # One that is refused by now is another, too.
    monkeypatch.setattr(Recipe, "from_json", lambda values: FitConfig(patience=-1))
    with pytest.raises(ValueError, match="another recipe"):
        checkpoints._check_same(tmp_path, saved, QUIET, "the same")


def test_more_epochs_of_a_schedule_are_told(said):
    schedule = FitConfig(epochs=3, cosine=True, warmup_steps=0)
    for before, expected in ((1, 1), (3, 0)):
        said.clear()
        checkpoints._log_more_epochs({"fit": {"epochs": before}}, schedule, FitResult(epoch=before))
        assert len(said) == expected
        assert all(line.startswith("epochs grow from 1 to 3: the learning rate") for line in said)
    said.clear()
    without = FitConfig(epochs=3, cosine=False, warmup_steps=0)
    checkpoints._log_more_epochs({"fit": {"epochs": 1}}, without, FitResult(epoch=1))
    assert not said
    stopped = FitResult(epoch=1, stopped=True)
    checkpoints._log_more_epochs({"fit": {"epochs": 1}}, schedule, stopped)
    assert "early stopping ended" in said[0]


def test_half_a_copy_of_a_workdir_is_refused(tmp_path, monkeypatch):
    """The weights of the last epoch would be reported with the figures of the best one."""
    training, _ = planted(monkeypatch, [0.9, 0.1], epochs=2)
    assert fit(training, tmp_path).best_epoch == 1
    shutil.rmtree(tmp_path / "checkpoints" / "best")
    again, _ = planted(monkeypatch, [], epochs=2)
    with pytest.raises(ValueError, match="lacks the weights of epoch 1, the best one"):
        fit(again, tmp_path)


def test_killed_between_two_checkpoints_the_figures_are_those_of_the_weights(tmp_path, monkeypatch):
    """Weights of epoch 2 were saved without figures, and its second run is worse than epoch 1."""
    training, weights = planted(monkeypatch, [0.5, 0.9], epochs=2)
    save = tf.train.CheckpointManager.save

    def killed(manager, *args, **kwargs):
        if manager.directory.endswith("last") and len(weights) == 2:
            raise OSError("killed")
        return save(manager, *args, **kwargs)

    monkeypatch.setattr(tf.train.CheckpointManager, "save", killed)
    with pytest.raises(OSError, match="killed"):
        fit(training, tmp_path)
    monkeypatch.undo()
    again, _ = planted(monkeypatch, [0.1], epochs=2)
    result = fit(again, tmp_path)
    assert (result.epoch, result.best_epoch, result.best) == (2, 1, 0.5)
    np.testing.assert_array_equal(again.item_vectors(again.split.candidates), weights[1])


def killed_at(epoch, workdir, figures, monkeypatch):
    """Trains until the kill, after the weights of an epoch and before the checkpoint that names
    them; the epochs are told these figures."""
    training, _ = planted(monkeypatch, figures, epochs=4)
    save, best = tf.train.CheckpointManager.save, workdir / "checkpoints" / "best"

    def killed(manager, *args, **kwargs):
        if manager.directory.endswith("last") and (best / f"ckpt-{epoch}.index").exists():
            raise OSError("killed")
        return save(manager, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tf.train.CheckpointManager, "save", killed)
        with pytest.raises(OSError, match="killed"):
            fit(training, workdir)


def test_killed_again_after_a_resume_it_still_goes_on(tmp_path, monkeypatch):
    """Each kill leaves weights in `best` that no checkpoint names; those named must stay."""
    # Epoch 1 is kept. Epoch 2 is better, and killed; then it is worse. Epoch 3 is better, and
    # killed, when `best` has the weights of epochs 1 to 3, and `last` names those of epoch 1.
    killed_at(2, tmp_path, [0.5, 0.9], monkeypatch)
    killed_at(3, tmp_path, [0.1, 0.8], monkeypatch)
    again, weights = planted(monkeypatch, [0.7, 0.2], epochs=4)
    result = fit(again, tmp_path)
    assert (result.epoch, result.best_epoch, result.best) == (4, 3, 0.7)
    np.testing.assert_array_equal(again.item_vectors(again.split.candidates), weights[1])
    best = {path.stem for path in (tmp_path / "checkpoints" / "best").glob("ckpt-*")}
    assert best == {"ckpt-3"}


def test_two_trainings_do_not_write_into_one_workdir_at_once(tmp_path, monkeypatch):
    """Until the first epoch of one has ended, the other finds no checkpoint to compare with."""
    training, _ = planted(monkeypatch, [0.1, 0.2], epochs=2)
    other = Training(tiny.dataset(), tiny.split(), tiny.recipe(QUIET, fit={"learning_rate": 0.5}))
    validate, messages = training.validate, []

    def meanwhile():
        with pytest.raises(ValueError, match="another training is writing") as error:
            fit(other, tmp_path)
        messages.append(str(error.value))
        return validate()

    monkeypatch.setattr(training, "validate", meanwhile)
    assert fit(training, tmp_path).epoch == 2
    assert len(messages) == 2 and str(tmp_path) in messages[0]
    # Afterwards the workdir is free, and another recipe is refused as such.
    with pytest.raises(ValueError, match="checkpoint of another recipe"):
        fit(other, tmp_path)


def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch):
    training, _ = planted(monkeypatch, [0.1, KeyboardInterrupt()], epochs=3)
    validate = training.validate

    def interrupted():
        found = validate()
        if isinstance(found["recall_micro@100"]["mean"], KeyboardInterrupt):
            raise found["recall_micro@100"]["mean"]
        return found

    monkeypatch.setattr(training, "validate", interrupted)
    with pytest.raises(
        KeyboardInterrupt, match=r"in epoch 2 of 3\. The same command goes on after"
    ):
        fit(training, tmp_path)
    assert interrupted_in(3, tmp_path / "W", monkeypatch) == "after the last epoch"


def interrupted_in(epoch, workdir, monkeypatch):
    """What is said of an interrupt once the log has this many of 3 epochs."""
    training, _ = planted(monkeypatch, [0.1] * epoch, epochs=3)
    model_fit = training.model.fit

    def fit_and_interrupt(*args, **kwargs):
        model_fit(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.model, "fit", fit_and_interrupt)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        fit(training, workdir)
    return str(interrupt.value).partition(".")[0].removeprefix("interrupted ")


def test_a_workdir_that_cannot_be_written_is_found_before_an_epoch(tmp_path):
    (tmp_path / "W").write_text("a file")
    training = tiny.without_learning(Training(tiny.dataset(), tiny.split(), tiny.recipe()))
    with pytest.raises(OSError, match="W"):
        fit(training, tmp_path / "W")
    assert training.model.optimizer is None


@pytest.mark.slow
def test_a_resumed_epoch_drops_other_activations_than_the_first(tmp_path):
    recipe = tiny.recipe(
        query={"features": ("history",), "history": "gru", "history_dropout": 0.5},
        fit={"epochs": 3},
    )
    dropped = []
    for stop in (1, 2):
        training = Training(tiny.dataset(), tiny.split("loo"), recipe)
        (history,) = training.model.query_tower.features
        masks = []

        def ones(x, training=False, drop=history.drop.call, masks=masks):
            kept = drop(tf.ones([4, 100]), training=training)
            tf.py_function(lambda values: masks.append(values.numpy()), [kept], [])
            return drop(x, training=training)

        monkey = pytest.MonkeyPatch()
        monkey.setattr(history.drop, "call", ones)
        fit(training, tmp_path, stop_after=stop)
        monkey.undo()
        dropped.append(masks[0])
    assert dropped[0].shape == dropped[1].shape and set(np.unique(dropped[0])) == {0.0, 2.0}
    assert (dropped[0] != dropped[1]).mean() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_killed_in_the_second_epoch_it_resumes_to_the_end(name, tmp_path):
    """train.py is killed or gets Ctrl-C while epoch 2 runs; the same command finishes the job."""
    command = [
        sys.executable,
        str(tiny.ROOT / "experiments" / "train.py"),
        "--dataset=synthetic",
        f"--workdir={tmp_path}",
        "--epochs=3",
        "--hidden=16",
        "--dim=8",
        "--batch_size=64",  # some 1,300 steps: an epoch takes seconds
        "--norefit",
        "--indexes=",
    ]
    last = tmp_path / "selection" / "checkpoints" / "last"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore it, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while not (last / "checkpoint").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "train.py ended before its first checkpoint"
        time.sleep(0.05)
    time.sleep(1.0)  # into epoch 2
    os.kill(process.pid, signal.Signals[name])
    _, printed = process.communicate(timeout=60)
    if name == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert printed.endswith("The same command goes on after epoch 1.\n")
    assert not (tmp_path / "bundle").exists()
    assert [path.name for path in last.glob("*.index")] == ["ckpt-1.index"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 1" in done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [entry["epoch"] for entry in metrics["log"]] == [1, 2, 3]
    assert Bundle(tmp_path / "bundle").manifest["refit"] is False
