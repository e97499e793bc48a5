"""A process that changes, swaps or saves a live index ends without warning, and the next one has
all that was acknowledged."""

import contextlib
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from two_trainings import CHECKS, NUM, add, bundle, holds, items, pair, tower

from twotower.live.index import LiveIndex
from twotower.live.log import WriteAheadLog
from twotower.live.pair import Pair
from twotower.retrieval import build


def start(folder):
    """As a service would after whatever happened to it."""
    log, base, version = WriteAheadLog(folder / "log"), pair(), "A"
    if (folder / "snapshot").exists():
        described = json.loads((folder / "snapshot" / "index" / "index.json").read_text())
        version = described["model_version"]
        base = Pair.from_snapshot(folder / "snapshot", bundle(version))
    return LiveIndex(base, log, CHECKS, items(version)), log


def item_of(number):
    """The item that entry `number` adds."""
    return NUM + number % 4000


def say(text):
    sys.stdout.write(f"{text}\n")  # by one call, as two threads say something
    sys.stdout.flush()


def adding(live):
    """Entry n adds item_of(n); each acknowledged number is printed."""
    while True:
        with contextlib.suppress(ValueError):  # the training was exchanged before the lock
            key = item_of(live.sequence + 1)
            say(add(live, [key], [f"item {key}"]))


def runs_until_killed(folder, doing):
    live, log = start(folder)
    if doing == "add":
        adding(live)
    threading.Thread(target=adding, args=(live,), daemon=True).start()
    while True:
        time.sleep(0.003)  # lets others have the lock
        if doing == "swap":
            version = {"A": "B", "B": "A"}[live.pair.model_version]
            found = live.items()
            built = build.build(build.IndexConfig("exact"), found.keys, items(version)(found.keys))
            say("begins")
            live.swap(Pair(tower(version), built, version, version, found.sequence), items(version))
            say("ends")
            log.truncate(live.snapshot(folder / "snapshot"))
        else:
            say("begins")
            sequence = live.snapshot(folder / "snapshot")
            say("ends")
            log.truncate(sequence)


def survives_kills(folder, doing, rounds):
    """Kills a process that does this, starts again, looks, and so on."""
    code = "import pathlib, sys; sys.path[:0] = sys.argv[1].split(); import test_kills as t; "
    code += "t.runs_until_killed(pathlib.Path(sys.argv[2]), sys.argv[3])"
    command = [
        sys.executable,
        "-c",
        code,
        f"{pathlib.Path(__file__).parent} {pathlib.Path(__file__).parents[1]}",
        str(folder),
        doing,
    ]
    rng, reached, inside = np.random.default_rng(rounds), 0, 0
    for _ in range(rounds):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            printed = ""
            while not any(word.isdigit() for word in printed.split()):  # until there is an entry
                line = process.stdout.readline()
                assert line
                printed += line
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            printed += process.stdout.read()
        assert process.returncode == -signal.SIGKILL
        said = printed[: printed.rfind("\n") + 1].split()
        inside += [word for word in said if not word.isdigit()][-1:] == ["begins"]
        acknowledged = max([reached, *(int(word) for word in said if word.isdigit())])
        live, log = start(folder)
        # Nothing acknowledged is lost; one more may have been logged, and not yet acknowledged.
        reached = live.sequence
        assert acknowledged <= reached <= acknowledged + 1
        assert holds(live, [*range(NUM), *{item_of(n) for n in range(1, reached + 1)}])
        log.close()
    assert reached >= rounds
    print(f"{doing}: {rounds} kills, {inside} of them in the middle of one; {reached} entries")
    return inside


def test_killed_while_adding(tmp_path):
    survives_kills(tmp_path, "add", 2)


@pytest.mark.parametrize("doing", ["snapshot", "swap"])
def test_killed_in_the_middle(tmp_path, doing):
    survives_kills(tmp_path, doing, 1)


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["add", "snapshot", "swap"])
def test_killed_many_times(tmp_path, doing):
    inside = survives_kills(tmp_path, doing, 60)
    assert inside > 5 or doing == "add"
