"""A made-up service and a model so small that an epoch takes a second; for tests only."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import twotower  # noqa: F401  (first: sets the Keras switch before TensorFlow loads)
from twotower.data import synthetic
from twotower.data.dataset import Dataset
from twotower.data.examples import ExamplesConfig
from twotower.data.splits import Split, make_split
from twotower.model import TaskConfig
from twotower.recipe import FitConfig, Recipe
from twotower.towers.item import ItemConfig
from twotower.towers.query import QueryConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Sizes of both towers.
HEAD = {"hidden": (16,), "dim": 8, "dropout": 0.0}

DEFAULT = Recipe(
    query=QueryConfig(
        user_dim=8, category_dim=4, history_dim=16, unknown_rate=0.2, history_dropout=0.2, **HEAD
    ),
    item=ItemConfig(id_dim=16, token_dim=8, **HEAD),
    task=TaskConfig(temperature=0.2),
    examples=ExamplesConfig(batch_size=256),
    fit=FitConfig(epochs=3, learning_rate=0.01, warmup_steps=5, cosine=False, patience=0),
)


@functools.cache
def dataset() -> Dataset:
    """200 users, 300 items, 7,200 watches."""
    return synthetic.generate(synthetic.SMALL).dataset


def split(protocol: str = "random", part: str = "validation") -> Split:
    """A split of `dataset()`; `random` asks many targets a user."""
    return make_split(dataset(), protocol, part)


def recipe(base: Recipe = DEFAULT, **parts: dict) -> Recipe:
    """`base` with some fields of its parts replaced: `recipe(fit={"epochs": 5})`."""
    return dataclasses.replace(
        base,
        **{
            name: dataclasses.replace(getattr(base, name), **fields)
            for name, fields in parts.items()
        },
    )


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
