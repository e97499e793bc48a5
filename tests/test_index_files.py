"""Indexes on disk: there and back, and what is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from backends import needs

from twotower.ragged import Ragged
from twotower.retrieval import build

DIM, NUM = 8, 300


@pytest.fixture(scope="module", params=build.BACKENDS)
def changed(request):
    """An index of each backend with two items removed, one replaced and one added."""
    if request.param != "exact":
        needs(request.param)
    rng = np.random.default_rng(5)
    vectors = np.float32(rng.normal(size=(NUM + 2, DIM)))
    keys = rng.permutation(np.arange(NUM) * 3 + 4)
    index = build.build(build.IndexConfig(request.param), keys, vectors[:NUM])
    index.remove(keys[[0, 17]])
    index.add(np.array([keys[5], 10**10]), vectors[NUM:])
    return index


@pytest.fixture
def queries():
    return np.float32(np.random.default_rng(6).normal(size=(6, DIM)))


@pytest.fixture(scope="module")
def pristine(changed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "index"
    build.save(changed, folder, model_version="m1")
    return folder


@pytest.fixture
def saved(pristine, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "index")


@pytest.fixture
def axes():
    """An exact index of two axes, keys 3 and 1."""
    return build.build(build.IndexConfig("exact"), np.array([3, 1]), np.eye(2, dtype=np.float32))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(index, other, queries):
    exclude = Ragged.from_rows([[4 + 3 * i, 10**10][: i % 3] for i in range(len(queries))])
    for k, no in ((5, None), (7, exclude), (NUM + 9, None)):
        left, right = index.search(queries, k, exclude=no), other.search(queries, k, exclude=no)
        np.testing.assert_array_equal(left.keys, right.keys)
        np.testing.assert_array_equal(left.scores, right.scores)
    assert index.keys.tolist() == other.keys.tolist()


# There and back.


@pytest.mark.parametrize("mmap", [False, True])
def test_round_trip(changed, saved, queries, mmap):
    loaded = build.load(saved, model_version="m1", mmap=mmap)
    assert type(loaded) is type(changed) and loaded.metric == "dot"
    # 300 items less 2 removed, plus 1 new; the replaced one counts once.
    assert len(loaded) == len(changed) == 299
    assert getattr(loaded, "config", None) == getattr(changed, "config", None)
    same(changed, loaded, queries)
    # Changes go on: the buffer's and a built item go, and one of those removed comes back.
    back = int(changed.state()["keys"][0])
    gone = int(changed.state()["keys"][9])
    assert back not in loaded.keys
    loaded.remove(np.array([10**10, gone]))
    loaded.add(np.array([back]), 100 * queries[:1])  # by far the best for its own query
    assert loaded.search(queries[:1], 1).keys.tolist() == [[back]]
    assert len(loaded) == 298


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("backend", build.BACKENDS)
def test_round_trip_of_other_metrics(backend, metric, tmp_path, queries):
    if backend != "exact":
        needs(backend)
    vectors = np.float32(np.random.default_rng(7).normal(size=(40, DIM)))
    index = build.build(build.IndexConfig(backend, metric), np.arange(40) + 9, vectors)
    build.save(index, tmp_path / "i")
    loaded = build.load(tmp_path / "i")
    assert loaded.metric == metric
    same(index, loaded, queries)


def test_parameters_come_back(tmp_path):
    pytest.importorskip("faiss")
    config = build.IndexConfig("hnsw", "dot", {"neighbours": 6, "ef_search": 77})
    index = build.build(config, np.arange(4), np.eye(4, dtype=np.float32))
    build.save(index, tmp_path / "i")
    loaded = build.load(tmp_path / "i")
    assert (loaded.config.neighbours, loaded.config.ef_search) == (6, 77)


def test_description(axes, tmp_path):
    build.save(axes, tmp_path / "i", model_version="m7")
    described = json.loads((tmp_path / "i" / "index.json").read_text())
    assert {name: described[name] for name in ("backend", "metric", "dim", "num_items")} == {
        "backend": "exact",
        "metric": "dot",
        "dim": 2,
        "num_items": 2,
    }
    assert described["model_version"] == "m7" and described["format_version"] == 1
    content = (tmp_path / "i" / "keys.npy").read_bytes()
    assert described["files"]["keys.npy"] == hashlib.sha256(content).hexdigest()


def test_saving_replaces_what_was_there(changed, saved, axes):
    build.save(axes, saved)
    assert build.load(saved).keys.tolist() == [1, 3]
    # index.json and the five arrays of the state; nothing of the old index, no temporary folder.
    assert [path.name for path in files(saved)] == [
        "dead.npy",
        "fresh_keys.npy",
        "fresh_vectors.npy",
        "index.json",
        "keys.npy",
        "vectors.npy",
    ]
    assert [path.name for path in saved.parent.iterdir()] == ["index"]


def test_nothing_pickled(saved, monkeypatch):
    assert not [path for path in files(saved) if path.suffix in (".pkl", ".pickle")]
    allowed, real = [], np.load

    def load(*args, **kwargs):
        allowed.append(kwargs.get("allow_pickle", False))
        return real(*args, **kwargs)

    monkeypatch.setattr(np, "load", load)
    build.load(saved)
    assert (
        set(allowed) == {False} and len(allowed) >= 5
    )  # keys, vectors, dead, fresh_{keys,vectors}


def test_a_pickle_put_beside_scann_is_not_read(saved):
    if not (saved / "scann").is_dir():
        pickled = saved / "keys.pkl"
        pickled.write_bytes(b"not a pickle")
        build.load(saved)  # nobody looks at it
        return
    (saved / "scann" / "scann_docids.pkl").write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match=r"scann_docids\.pkl is no part of an index"):
        build.load(saved)


# Damage.


def refused(folder, name):
    with pytest.raises(ValueError) as caught:
        build.load(folder)
    assert str(folder / name) in str(caught.value)


def test_one_byte_of_any_file_changed(saved):
    for path in files(saved):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1} if content else ():
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            refused(saved, path.relative_to(saved))
        path.write_bytes(content)
    build.load(saved)  # all are whole again


def test_each_byte_of_the_description_changed(axes, tmp_path):
    build.save(axes, tmp_path / "i", model_version="m1")
    path = tmp_path / "i" / "index.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        refused(tmp_path / "i", "index.json")


def test_any_file_truncated_or_missing(saved):
    for path in files(saved):
        content = path.read_bytes()
        for length in {0, len(content) // 2, len(content) - 1} if content else ():
            path.write_bytes(content[:length])
            refused(saved, path.relative_to(saved))
        path.unlink()
        refused(saved, path.relative_to(saved))
        path.write_bytes(content)
    build.load(saved)


def test_newer_format(saved):
    described = json.loads((saved / "index.json").read_text())
    described["format_version"] = build.FORMAT_VERSION + 1
    (saved / "index.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"index\.json: format 2 is newer than this code reads"):
        build.load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"files": {}}',
        '{"format_version": 1, "files": {}}',
        '{"format_version": "one", "files": {}}',
        '{"format_version": null, "files": []}',
    ],
)
def test_description_of_something_else(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    refused(tmp_path, "index.json")


def test_foreign_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("shopping list")
    with pytest.raises(ValueError, match=r"index\.json does not exist, so .* holds no index"):
        build.load(tmp_path)
    with pytest.raises(ValueError, match="holds no index"):
        build.load(tmp_path / "no" / "folder")


def test_other_model(saved):
    with pytest.raises(ValueError, match=r"index\.json: .* model 'm1', not of 'm2'"):
        build.load(saved, model_version="m2")
    with pytest.raises(ValueError, match="not of ''"):
        build.load(saved, model_version="")
    assert len(build.load(saved)) == 299  # nobody asks


def test_other_dimension(saved):
    with pytest.raises(ValueError, match=r"index\.json: .*\[num_items, 8\]; expected .* 16\]"):
        build.load(saved, dim=16)
    assert len(build.load(saved, dim=8)) == 299


def test_what_tuning_found_comes_back(axes, tmp_path):
    axes.tuned = {"ef_search": 40, "recall": 0.991}
    build.save(axes, tmp_path / "i")
    assert build.load(tmp_path / "i").tuned == {"ef_search": 40, "recall": 0.991}


def test_arrays_of_another_shape(axes, tmp_path):
    # The plain files without their description: two keys for three vectors.
    axes.save(tmp_path)
    np.save(tmp_path / "vectors.npy", np.eye(3, 2, dtype=np.float32))
    with pytest.raises(ValueError, match=r"vectors\.npy: expected \[2, None\].*got \[3, 2\]"):
        build.make(build.IndexConfig("exact")).load(tmp_path)


def test_saving_what_was_never_built(axes, tmp_path):
    build.save(axes, tmp_path / "i")
    with pytest.raises(ValueError, match="the index is empty"):
        build.save(build.make(build.IndexConfig("exact")), tmp_path / "i")
    assert build.load(tmp_path / "i").keys.tolist() == [1, 3]


# Interruptions.


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_block_leaves_the_old_index(saved, queries, changed, error):
    with pytest.raises(error), build.replacing(saved) as folder:
        (folder / "keys.npy").write_text("half a fi")
        raise error
    same(changed, build.load(saved), queries)
    assert [path.name for path in saved.parent.iterdir()] == ["index"]


def test_interrupted_save_leaves_the_old_index(axes, tmp_path, monkeypatch):
    build.save(axes, tmp_path / "i")
    other = build.build(build.IndexConfig("exact"), np.array([8]), np.ones((1, 2), np.float32))

    def full(directory):
        raise OSError("no space left on device")

    monkeypatch.setattr(other, "_save", full)
    with pytest.raises(OSError, match="no space"):
        build.save(other, tmp_path / "i")
    assert build.load(tmp_path / "i").keys.tolist() == [1, 3]


def test_interrupted_first_save_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), build.replacing(tmp_path / "a" / "i"):
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []


def test_end_between_the_two_renames(axes, tmp_path, monkeypatch):
    # The old folder is moved away, the new one has not taken its place: the next call has the old
    # one back before it starts.
    build.save(axes, tmp_path / "i")
    real, calls = os.rename, []

    def rename(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("killed")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(build, "_exchange", lambda one, other: False)  # as outside Linux
        patched.setattr(os, "rename", rename)
        with pytest.raises(OSError, match="killed"):
            build.save(axes, tmp_path / "i")
    assert len(calls) == 2
    with pytest.raises(RuntimeError), build.replacing(tmp_path / "i"):
        raise RuntimeError
    assert build.load(tmp_path / "i").keys.tolist() == [1, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux")
def test_exchange_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "says").write_text(name)
    assert build._exchange(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "says").read_text() for name in "ab"] == ["b", "a"]
    assert not build._exchange(tmp_path / "a", tmp_path / "nowhere")


KILLS = """
import contextlib, os, pathlib, random, signal, sys, time
import numpy as np
from twotower.retrieval import build

def make(num):
    vectors = np.random.default_rng(num).normal(size=(num, 32)).astype(np.float32)
    parameters = {"num_lists": 20} if sys.argv[2] == "ivf" else {}
    index = build.IndexConfig(sys.argv[2], "dot", parameters)
    return build.build(index, np.arange(num), vectors)

@contextlib.contextmanager
def in_place(directory):
    yield pathlib.Path(directory)

folder, indexes = sys.argv[1], [make(2000), make(3000)]
start = time.perf_counter()
build.save(indexes[0], folder)
took = time.perf_counter() - start
if sys.argv[3] == "in place":
    build.replacing = in_place
elif sys.argv[3] == "two renames":
    build._exchange, rename = lambda one, other: False, os.rename
    os.rename = lambda *names: (rename(*names), time.sleep(took))
random.seed(0)
saved = indexes[0]
for kill in range(50):
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
"""


def saves_killed_50_times(folder, backend, way=""):
    command = [sys.executable, "-c", KILLS, str(folder / "i"), backend, way]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux")
@pytest.mark.parametrize("backend", ["exact", "ivf"])
def test_killed_50_times_in_a_save(backend, tmp_path):
    needs(backend)
    run = saves_killed_50_times(tmp_path, backend)
    assert run.returncode == 0, run.stderr
    # The old one or the new one, and both have been met.
    assert len(run.stdout.split()) == 50 and set(run.stdout.split()) == {"2000", "3000"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the saving process is a fork")
@pytest.mark.parametrize("way", ["in place", "two renames"])
def test_kills_tell_when_a_save_is_not_one_step(way, tmp_path):
    run = saves_killed_50_times(tmp_path, "exact", way)
    assert run.returncode and run.stderr.startswith("neither: "), run.stderr


def test_left_overs_go_with_the_next_save(axes, tmp_path):
    (tmp_path / ".i.partial-x7").mkdir()
    (tmp_path / ".other.partial-x7").mkdir()
    build.save(axes, tmp_path / "i")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.partial-x7", "i"]


def test_folder_name_that_looks_like_a_pattern(axes, tmp_path):
    # "[ab]" is no pattern here: the folder of another index "a" stays.
    (tmp_path / ".a.partial-x7").mkdir()
    (tmp_path / ".[ab].partial-x7").mkdir()
    build.save(axes, tmp_path / "[ab]")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.partial-x7", "[ab]"]
