"""Exports that end without warning, and many at once."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from bundle_folders import inputs

from twotower.bundle import export as exporting
from twotower.bundle.bundle import Bundle
from twotower.bundle.export import add_index, export
from twotower.retrieval.build import IndexConfig


@pytest.fixture
def quick(training, monkeypatch):
    """`quick(version, folder)` exports in milliseconds and without TensorFlow, so that a fork of
    this process can do it: each part is a file that holds the version."""

    def stand_in(*args):
        folder = next(arg for arg in args if isinstance(arg, pathlib.Path))
        folder.mkdir()
        (folder / "version").write_text(quick.version)

    for name in ("save_tower", "save_retrieve", "save_weights"):
        monkeypatch.setattr(exporting, name, stand_in)
    monkeypatch.setattr(exporting.scann_index, "available", lambda: False)
    monkeypatch.setattr(exporting, "provenance", dict)
    monkeypatch.setattr(exporting, "model_version", lambda *_: quick.version)
    queries = np.ones((9, 8), np.float32)
    monkeypatch.setattr(exporting, "_sample_queries", lambda _: queries * int(quick.version, 16))
    monkeypatch.setattr(type(training.dataset), "fingerprint", lambda _: "")
    monkeypatch.setattr(training, "item_vectors", lambda keys: vectors_of(quick.version))

    def quick(version, folder):
        quick.version = version
        return export(training, folder)

    return quick


def vectors_of(version: str) -> np.ndarray:
    num = len(tiny.split().candidates)
    return np.full((num, 8), int(version, 16), np.float32)


def version_of(folder: pathlib.Path) -> str:
    """The version that each part of a bundle says, which is the same."""
    bundle = Bundle(folder)
    version = bundle.model_version
    for part in ("query_tower", "item_tower", "retrieve", "training"):
        assert (folder / part / "version").read_text() == version
    np.testing.assert_array_equal(bundle.vectors, vectors_of(version))
    assert bundle.sample_queries[0, 0] == int(version, 16) and len(bundle.catalogue)
    return version


def forked(work) -> int:
    """The process id of a fork that does `work()` and ends."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def killed(work, num: int, longest: float, check) -> list:
    """What `check()` says after each of `num` kills of processes that do `work()` again and again:
    the first two when they have done it once, the others at random, `longest` seconds at most."""
    found, rng = [], random.Random(0)
    for number in range(num):
        reading, writing = os.pipe()

        def repeat(writing=writing, is_once=number < 2):
            while True:
                work()
                if is_once:
                    os.write(writing, b"x")
                    time.sleep(600)

        child = forked(repeat)
        if number < 2:
            os.read(reading, 1)
        else:
            time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
        found.append(check())
    return found


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


NUM_KILLS = [6, pytest.param(60, marks=pytest.mark.slow)]


@pytest.mark.parametrize("num", NUM_KILLS)
def test_killed_in_an_export(num, quick, tmp_path):
    """The old bundle or the new one, whole; both are met, and nothing is left in the end."""
    folder = tmp_path / "b"
    quick("1", folder)

    def export_another():
        quick("2" if version_of(folder) == "1" else "1", folder)

    longest = 4 * timed(export_another)
    found = killed(export_another, num, longest, lambda: version_of(folder))
    assert len(found) == num and set(found) == {"1", "2"}, found
    quick("1", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("num", NUM_KILLS)
def test_killed_in_an_added_index(num, quick, tmp_path):
    folder = tmp_path / "b"
    bundle = quick("1", folder)
    add_index(bundle, "new", IndexConfig("exact"))

    def metric():
        assert version_of(folder) == "1"
        return Bundle(folder).retriever("new").metric

    def add_another():
        add_index(bundle, "new", IndexConfig("exact", "cosine" if metric() == "dot" else "dot"))

    found = killed(add_another, num, 4 * timed(add_another), metric)
    assert len(found) == num and set(found) == {"dot", "cosine"}, found
    add_index(bundle, "new", IndexConfig("exact"))
    assert [path.name for path in (folder / "index").iterdir()] == ["new"]


@pytest.mark.parametrize("num", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_pairs_of_exports_into_one_folder(num, quick, tmp_path):
    """Started at one moment; each comes to its end, and one of them stands there."""
    found = []
    for _ in range(num):
        reading, writing = os.pipe()

        def wait_and_export(version, reading=reading, writing=writing):
            os.close(writing)
            os.read(reading, 1)  # until the parent closes it
            quick(version, tmp_path / "b")

        pair = [forked(lambda v=version: wait_and_export(v)) for version in ("1", "2")]
        os.close(reading)
        os.close(writing)
        assert [os.waitpid(child, 0)[1] for child in pair] == [0, 0]
        found.append(version_of(tmp_path / "b"))
        assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert len(found) == num


REAL = """
import random, sys, time, os, signal
sys.path.insert(0, sys.argv[1])
import tiny
import numpy as np
from twotower.bundle import export as exporting
from twotower.bundle.bundle import Bundle
from twotower.training.training import Training
exporting.scann_index.available = lambda: False  # as other SavedModels, and slow

def exports(folder):
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe())
    while True:
        weight = training.model.query_tower.weights[-1]
        weight.assign_add(np.random.default_rng(os.getpid()).normal(size=weight.shape))
        yield exporting.export(training, folder).model_version
"""
REAL_KILLS = (
    REAL
    + """
folder, rng, found = sys.argv[2], random.Random(0), set()
for kill in range(int(sys.argv[3])):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for version in exports(folder):
            os.write(writing, b"x")
    started = [os.read(reading, 1) and time.perf_counter() for _ in range(2)]
    took = started[1] - started[0]
    time.sleep(rng.uniform(0, 2 * took))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading), os.close(writing)
    bundle = Bundle(folder)
    found.add(bundle.model_version)
    print(kill, bundle.model_version, flush=True)
child = os.fork()
if not child:
    assert Bundle(folder).query_tower.model
    next(exports(folder))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(len(found), os.listdir(os.path.dirname(folder)))
"""
)
REAL_PAIRS = (
    REAL
    + """
made = exports(sys.argv[2])
for line in sys.stdin:
    print(next(made), flush=True)
"""
)


@pytest.mark.slow
def test_killed_in_an_export_of_saved_models(tmp_path):
    command = [
        sys.executable,
        "-c",
        REAL_KILLS,
        str(tiny.ROOT / "tests"),
        str(tmp_path / "b"),
        "60",
    ]
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=env)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    *kills, last = run.stdout.splitlines()
    assert len(kills) == 60 and last.endswith(" ['b']") and int(last.split()[0]) > 30, last


@pytest.mark.slow
def test_pairs_of_exports_of_saved_models(tmp_path):
    command = [sys.executable, "-c", REAL_PAIRS, str(tiny.ROOT / "tests"), str(tmp_path / "b")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    pair = [subprocess.Popen(command, env=env, **pipes) for _ in range(2)]
    won = []
    for _ in range(20):
        for process in pair:
            process.stdin.write("\n")
            process.stdin.flush()
        versions = [process.stdout.readline().strip() for process in pair]
        bundle = Bundle(tmp_path / "b")
        won.append(versions.index(bundle.model_version))
        assert bundle.query_tower(inputs()).shape == (1, 8) and len(bundle.catalogue)
        assert [path.name for path in tmp_path.iterdir()] == ["b"]
    for process in pair:
        process.stdin.close()
        assert process.wait(60) == 0
    print(won)
