"""A made-up service and a model so small that an epoch takes a second; for tests only."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

from twotower.data import synthetic
from twotower.data.dataset import Dataset
from twotower.data.examples import ExamplesConfig
from twotower.data.splits import Split, make_split
from twotower.objective.task import TaskConfig
from twotower.towers.history.config import MeanConfig
from twotower.towers.item import ItemConfig
from twotower.towers.query import QueryConfig
from twotower.training.recipe import PARTS, FitConfig, Recipe

ROOT = pathlib.Path(__file__).resolve().parents[1]

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


def python(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """Runs Python on a script or `-c` code, from a folder that holds no package."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=ROOT / "experiments",
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


# Imports once and forks: a run costs a tenth of a process. Only for runs that end before they
# compute anything, such as --help and refusals.
FORKING = """
import json, os, runpy, sys
import twotower.evaluation.baselines, twotower.bundle.export, twotower.training.fitting
for number, argv in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        file = os.open(f"{sys.argv[2]}/{number}", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.argv = argv
        sys.path.insert(0, os.path.dirname(argv[0]))
        runpy.run_path(argv[0], run_name="__main__")
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def forked(runs: list[list], folder: pathlib.Path) -> list[tuple[int, str]]:
    """(exit status, what it printed) of each run of a script of experiments/."""
    runs = [[str(ROOT / "experiments" / script), *map(str, rest)] for script, *rest in runs]
    done = python("-c", FORKING, json.dumps(runs), folder)
    outputs = [(folder / str(number)).read_text() for number in range(len(runs))]
    return list(zip(map(int, done.stdout.split()), outputs, strict=True))
