"""A made-up service and a model so small that an epoch takes a second; for tests only."""

import dataclasses
import functools
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

from twotower.data import synthetic
from twotower.data.dataset import Dataset
from twotower.data.examples import ExamplesConfig
from twotower.data.splits import Split, make_split
from twotower.objective.task import TaskConfig
from twotower.tf import tf
from twotower.towers.history.config import MeanConfig
from twotower.towers.item import ItemConfig
from twotower.towers.query import QueryConfig
from twotower.training.recipe import PARTS, FitConfig, Recipe
from twotower.training.training import Training

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Seconds that a script may take, on a machine with other work too.
LIMIT = 600

# Sizes of both towers.
HEAD = {"hidden": (16,), "dim": 8}

DEFAULT = Recipe(
    query=QueryConfig(
        features=("user_id", "history"),
        user_dim=8,
        category_dim=4,
        unknown_rate=0.2,
        history=MeanConfig(dim=16, dropout=0.2),
        **HEAD,
    ),
    item=ItemConfig(id_dim=16, token_dim=8, **HEAD),
    task=TaskConfig(temperature=0.2),
    examples=ExamplesConfig(batch_size=256),
    fit=FitConfig(epochs=3, learning_rate=0.01, warmup_steps=0, cosine=False, patience=0),
)


@functools.cache
def dataset() -> Dataset:
    """200 users, 300 items, 7,200 watches."""
    return synthetic.generate(synthetic.SMALL).dataset


def split(protocol: str = "random", part: str = "validation") -> Split:
    """A split of `dataset()`; `random` asks many targets a user."""
    return make_split(dataset(), protocol, part)


def recipe(base: Recipe = DEFAULT, **parts: dict) -> Recipe:
    """`base` with some fields of its parts replaced: `recipe(fit={"epochs": 5})`. A query takes
    those of its history by their names among the choices: `query={"history_dim": 8}`."""
    query = parts.get("query", {})
    of_history = {name: value for name, value in query.items() if name.startswith("history")}
    if of_history:
        parts["query"] = {name: query[name] for name in query.keys() - of_history}
    replaced = {
        part.name: dataclasses.replace(getattr(base, part.name), **parts.pop(part.name, {}))
        for part in PARTS
    }
    choices = {f"query_{name}": value for name, value in of_history.items()}
    return Recipe(**replaced, **choices, **parts)


def without_learning(training: Training) -> Training:
    """The same training with a step that draws new vectors of items and learns nothing. It is
    traced at once, which suits tests of what happens around the steps."""
    table = training.model.item_tower.features[0].table.embeddings

    def step(batch) -> dict[str, tf.Tensor]:
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            table.assign(tf.random.normal(table.shape))
            return {"loss": tf.random.uniform([])}

    training.model.train_step = step
    return training


def python(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """Runs Python on a script or `-c` code, from a folder that holds no package."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=ROOT / "experiments",
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


# A server that has imported TensorFlow forks a process for each run of a script, which saves the
# run five seconds. That is safe: nothing was computed there, so TensorFlow has no threads yet.
FORKS = multiprocessing.get_context("forkserver")
IMPORTED = ("commands.script", "evaluation.baselines", "bundle.export", "training.fitting")
FORKS.set_forkserver_preload([f"twotower.{name}" for name in IMPORTED])


def _run(arguments: list[str], cwd: str, folder: str, environment: dict[str, str]) -> None:
    """In the process of a script: what `python ARGUMENTS` does."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), number)
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = arguments
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


def script(
    *arguments: str, check: bool = True, cwd: pathlib.Path = ROOT / "experiments"
) -> subprocess.CompletedProcess:
    """As `python`, sooner: TensorFlow and the package are imported already."""
    with tempfile.TemporaryDirectory() as folder:
        given = [str(argument) for argument in arguments]
        process = FORKS.Process(target=_run, args=(given, str(cwd), folder, dict(os.environ)))
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            process.join()
        printed = [(pathlib.Path(folder) / name).read_text() for name in ("stdout", "stderr")]
    if check:
        assert process.exitcode == 0, "".join(printed)
    return subprocess.CompletedProcess(given, process.exitcode, *printed)
