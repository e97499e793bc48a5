"""How far a training is and how long the rest takes, as it is shown."""

import re

import pytest
import tiny

from twotower.training import callbacks
from twotower.training.callbacks import Pace, Progress, line_writer
from twotower.training.fitting import fit
from twotower.training.training import Training


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test moves it: `clock[0]` is its time."""
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    return now


def test_the_rest_takes_as_long_as_what_was_done(clock):
    # Two epochs of 4 steps were done by an earlier process. The first step says nothing.
    pace = Pace(2, 5, steps=4)
    assert pace.left(2.25) is None
    clock[0] += 50
    pace.on_train_batch_end(0)
    assert pace.left(2.25) is None
    # One step takes 3 s; of 12 steps 10 are left.
    clock[0] += 3
    pace.on_train_batch_end(1)
    assert pace.left(2.5) == pytest.approx(30)
    # The third epoch ends 9 s after its second step, with validation: 3 steps took 12 s, and 8
    # steps are left.
    clock[0] += 9
    assert pace.left(3) == pytest.approx(32)


def test_the_line_of_progress(clock):
    lines = []
    pace = Pace(0, 2, steps=4)
    progress = Progress(num_examples=1000, batch_size=250, pace=pace, write=lines.append)
    progress.on_epoch_begin(0)
    for batch in range(4):
        clock[0] += 5
        for callback in (pace, progress):
            callback.on_train_batch_end(batch, {"loss": 7 - batch})
        clock[0] += 0.1  # a line is shown every .2 s at most
        progress.on_train_batch_end(batch, {"loss": 0.0})
        clock[0] -= 0.1
    progress.on_epoch_end(0)
    # A step of 250 examples takes 5 s.
    assert lines == [
        "epoch 1/2  25%, loss 7.0000, 50 examples/s",
        "epoch 1/2  50%, loss 6.0000, 50 examples/s, 30 s left",
        "epoch 1/2  75%, loss 5.0000, 50 examples/s, 25 s left",
        "epoch 1/2 100%, loss 4.0000, 50 examples/s, 20 s left",
        "",
    ]


def fitted(folder, fields: dict, **options) -> None:
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit=fields))
    fit(tiny.without_learning(training), folder, **options)


def test_on_a_pipe_an_epoch_is_a_line(tmp_path, monkeypatch):
    assert line_writer() is None
    lines = []
    monkeypatch.setattr(callbacks.logging, "info", lambda text, *v: lines.append(text % v))
    fitted(tmp_path / "two", {"epochs": 2})
    first, last = (line for line in lines if line.startswith("epoch"))
    assert re.fullmatch(
        r"epoch 1/2, loss \d\.\d{4}, recall_micro@100 0\.\d{4}, ndcg@10 0\.\d{4}, \d+\.\d s, "
        r"\d+ s left",
        first,
    )
    assert last.startswith("epoch 2/2, ") and "left" not in last
    # With early stopping it is an upper bound; a resumed training counts its own epochs alone.
    lines.clear()
    fitted(tmp_path / "patient", {"epochs": 3, "patience": 2}, stop_after=2)
    assert re.search(r" s, at most \d+ s left$", next(x for x in lines if x.startswith("epoch")))


def test_on_a_terminal_the_line_is_written_over_itself(tmp_path, monkeypatch):
    class Terminal:
        text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    monkeypatch.setattr(callbacks.sys, "stderr", terminal)
    monkeypatch.setattr(callbacks.logging, "info", lambda text, *v: None)
    fitted(tmp_path, {"epochs": 1})
    shown = terminal.text.split("\r")
    assert re.match(r"epoch 1/1 +\d+%, loss \d", shown[1])
    assert shown[-1] == "\033[K" and "\n" not in terminal.text
