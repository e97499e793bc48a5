"""A save that is interrupted or killed leaves the old folder or the new one, and nothing beside it
for long."""

import os
import subprocess
import sys

import pytest
import tiny
from backends import needs
from exact_indexes import exact, keys_of, names

from twotower.retrieval import build


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_block_leaves_the_old_index(tmp_path, error):
    build.save(exact(3), tmp_path / "i")
    with pytest.raises(error), build.replacing(tmp_path / "i", "index.json") as folder:
        (folder / "keys.npy").write_text("half a fi")
        raise error
    assert keys_of(tmp_path / "i") == [3] and names(tmp_path) == ["i"]


def test_interrupted_save_leaves_the_old_index(tmp_path, monkeypatch):
    build.save(exact(3), tmp_path / "i")
    other = exact(8)

    def full(directory):
        raise OSError("no space left on device")

    monkeypatch.setattr(other, "_save", full)
    with pytest.raises(OSError, match="no space"):
        build.save(other, tmp_path / "i")
    assert keys_of(tmp_path / "i") == [3] and names(tmp_path) == ["i"]


def test_interrupted_first_save_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), build.replacing(tmp_path / "a" / "i", "index.json"):
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []


KILLED = """
import os, signal, sys
import numpy as np
from twotower.retrieval import build
{prepare}
index = build.build(build.IndexConfig("exact"), np.array([8]), np.ones((1, 2), np.float32))
with build.replacing(sys.argv[1], "index.json") as folder:
    index.save(folder)
    {inside}
"""
END = "os.kill(os.getpid(), signal.SIGKILL)"
# Where folders cannot be exchanged in one step, as outside Linux: killed between the two renames.
TWO_RENAMES = """
from twotower.storage import replacing
replacing._exchange, rename = lambda one, other: False, os.rename

def killing(source, target):
    rename(source, target)
    if os.path.basename(target) == "old":
        os.kill(os.getpid(), signal.SIGKILL)

os.rename = killing
"""


def killed(folder, prepare="", inside=END):
    code = KILLED.format(prepare=prepare, inside=inside)
    assert tiny.python("-c", code, folder, check=False).returncode == -9


def test_left_overs_of_killed_writers_go_with_the_next_save(tmp_path):
    """Its own: another folder's may be somebody's work, and `[ab]` is not a pattern."""
    for name in ("[ab]", "a"):
        build.save(exact(3), tmp_path / name)
        killed(tmp_path / name)
    (tmp_path / ".[ab].partial-aaaaaa_7").mkdir()  # killed before it had a lock
    assert len(names(tmp_path)) == 5
    build.save(exact(9), tmp_path / "[ab]")
    kept = names(tmp_path)
    assert len(kept) == 3 and kept[0].startswith(".a.partial-") and kept[1:] == ["[ab]", "a"]
    assert keys_of(tmp_path / "[ab]") == [9] and keys_of(tmp_path / "a") == [3]


def test_killed_between_two_renames(tmp_path):
    """The next call has the old folder back before it starts."""
    build.save(exact(3), tmp_path / "i")
    killed(tmp_path / "i", TWO_RENAMES, "pass")
    assert not (tmp_path / "i").exists()
    with pytest.raises(RuntimeError), build.replacing(tmp_path / "i", "index.json"):
        raise RuntimeError
    assert keys_of(tmp_path / "i") == [3] and names(tmp_path) == ["i"]


KILLS = """
import contextlib, os, pathlib, random, signal, sys, time
import numpy as np
from twotower.storage import replacing
from twotower.retrieval import build

def make(num):
    vectors = np.random.default_rng(num).normal(size=(num, 32)).astype(np.float32)
    parameters = {"num_lists": 20} if sys.argv[2] == "ivf" else {}
    index = build.IndexConfig(sys.argv[2], "dot", parameters)
    return build.build(index, np.arange(num), vectors)

@contextlib.contextmanager
def in_place(directory, description):
    yield pathlib.Path(directory)

folder, indexes = sys.argv[1], [make(2000), make(3000)]
start = time.perf_counter()
build.save(indexes[0], folder)
took = time.perf_counter() - start
if sys.argv[3] == "in place":
    build.replacing = in_place
elif sys.argv[3] == "two renames":
    replacing._exchange, rename = lambda one, other: False, os.rename
    os.rename = lambda *names: (rename(*names), time.sleep(took))
random.seed(0)
saved = indexes[0]
for kill in range(int(sys.argv[4])):
    child = os.fork()
    if not child:
        # The other one first: a single save that comes to its end is seen, however slow it was.
        while True:
            for index in indexes if saved is indexes[1] else indexes[::-1]:
                build.save(index, folder)
    time.sleep(random.uniform(0, 4 * took))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        found = build.load(folder)
    except (OSError, ValueError) as error:
        sys.exit(f"neither: {error}")
    saved = indexes[len(found) == 3000]
    assert np.array_equal(found.live()[1], saved.live()[1])
    query = np.ones((1, 32), np.float32)
    assert np.array_equal(found.search(query, 9).keys, saved.search(query, 9).keys)
    print(len(found), flush=True)
build.save(indexes[0], folder)
assert os.listdir(os.path.dirname(folder)) == ["i"], os.listdir(os.path.dirname(folder))
"""


def saves_killed(folder, backend, way="", num=60):
    command = [sys.executable, "-c", KILLS, str(folder / "i"), backend, way, str(num)]
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux")
@pytest.mark.parametrize(
    ("backend", "num"), [("exact", 30), pytest.param("ivf", 60, marks=pytest.mark.slow)]
)
def test_killed_in_a_save(backend, num, tmp_path):
    needs(backend)
    run = saves_killed(tmp_path, backend, num=num)
    assert run.returncode == 0, run.stderr
    # The old one or the new one, and both have been met.
    assert len(run.stdout.split()) == num and set(run.stdout.split()) == {"2000", "3000"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the saving process is a fork")
@pytest.mark.parametrize("way", ["in place", "two renames"])
def test_kills_tell_when_a_save_is_not_one_step(way, tmp_path):
    run = saves_killed(tmp_path, "exact", way)
    assert run.returncode and run.stderr.startswith("neither: "), run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux")
def test_exchange_in_one_step(tmp_path):
    from twotower.storage.replacing import _exchange

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "says").write_text(name)
    assert _exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "says").read_text() for name in "ab"] == ["b", "a"]
    assert not _exchange(tmp_path / "a", tmp_path / "nowhere")
