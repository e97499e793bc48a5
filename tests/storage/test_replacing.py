"""A folder is replaced whole or not at all, and never one that holds something else."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny
from backends import needs

from twotower.retrieval import build
from twotower.storage import description
from twotower.storage.replacing import replacing

KINDS = {"bundle": "manifest.json", "snapshot": "live.json", "index": "index.json"}
VERSIONS = {"A": 2000, "B": 3000}


def exact(*keys: int):
    """An exact index of these keys, each a vector of ones."""
    vectors = np.ones((len(keys), 2), np.float32)
    return build.build(build.IndexConfig("exact"), np.array(keys), vectors)


def keys_of(folder) -> list[int]:
    return build.load(folder).keys.tolist()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# What may be replaced.


def a_file(folder):
    (folder / "notes.txt").write_text("shopping list")


def a_hidden_folder(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")


def a_link(folder):
    (folder / "notes").symlink_to(folder.parent)


def a_page(folder):
    (folder / "index.json").write_text('{"title": "a page of some website"}')


def an_app(folder):
    (folder / "manifest.json").write_text('{"format_version": 1, "files": {"icon.png": 3}}')
    (folder / "icon.png").write_text("an icon")


def an_index_with_a_file(folder):
    build.save(exact(3), folder / "i")
    for path in (folder / "i").iterdir():
        path.rename(folder / path.name)
    (folder / "i").rmdir()
    a_file(folder)


def an_index_with_another_folder(folder):
    an_index_with_a_file(folder)
    (folder / "notes.txt").unlink()
    build.save(exact(4), folder / "kept" / "i")


def a_folder_of_indexes(folder):
    build.save(exact(3), folder / "one")
    build.save(exact(4), folder / "two")


def a_damaged_index(folder):
    build.save(exact(3), folder / "i")
    (folder / "i" / "index.json").rename(folder / "index.json")
    (folder / "index.json").write_text("{")


OTHERS = [
    a_file,
    a_hidden_folder,
    a_link,
    a_page,
    an_app,
    an_index_with_a_file,
    an_index_with_another_folder,
    a_folder_of_indexes,
    a_damaged_index,
]


@pytest.mark.parametrize("put", OTHERS)
def test_a_folder_of_something_else_stays(put, tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    put(folder)
    before, entered = contents(folder), []
    with pytest.raises(ValueError, match="is not replaced"):
        build.save(exact(8), folder)
    with pytest.raises(ValueError, match="is not replaced"), build.replacing(folder, "index.json"):
        entered.append("the work is done first")
    assert contents(folder) == before and not entered
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_only_a_folder_of_its_kind_is_replaced(kind, other, tmp_path):
    """An index that is saved onto the bundle around it would delete the training."""
    folder = tmp_path / "f"
    with replacing(folder, KINDS[kind]) as new:
        (new / "a.npy").write_bytes(b"a")
        if kind != "index":
            build.save(exact(3), new / "index" / ("one" if kind == "bundle" else ""))
        entries = {"format_version": 1, "model_version": "m", "files": description.hashes(new)}
        description.write(new / KINDS[kind], entries)
    before = contents(folder)
    if kind == other:
        with replacing(folder, KINDS[other]):
            pass
        assert contents(folder) == {}
    else:
        with pytest.raises(ValueError, match="is not replaced"), replacing(folder, KINDS[other]):
            pytest.fail("the work is done first")
        assert contents(folder) == before


@pytest.mark.parametrize("name", [".i.partial-thesis", ".i.partial-chapters"])
def test_a_folder_with_the_name_of_a_leftover_stays(name, tmp_path):
    """Beside an index, and among a bundle's indexes, which then is not replaced."""
    for place in (tmp_path / name, tmp_path / "bundle" / "index" / name):
        place.mkdir(parents=True)
        (place / "chapter.txt").write_text("once upon a time")
    build.save(exact(3), tmp_path / "i")
    build.save(exact(4), tmp_path / "i")
    assert names(tmp_path) == [name, "bundle", "i"]
    refused = pytest.raises(ValueError, match=r"chapter\.txt")
    with refused, replacing(tmp_path / "bundle", "manifest.json"):
        pytest.fail("the work is done first")


def test_a_home_is_expanded_and_an_address_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    build.save(exact(3), "~/i")
    assert names(tmp_path) == ["i"] and keys_of("~/i") == [3]
    for address in ("gs://bucket/i", "file:///i"):
        with pytest.raises(ValueError, match="is an address"):
            build.save(exact(3), address)
        with pytest.raises(ValueError, match="is an address"):
            build.load(address)
    assert names(tmp_path) == ["i"]


def test_what_comes_in_during_the_work_stays_and_so_does_the_work(tmp_path):
    """The message names the finished folder, which no later call takes for a leftover."""
    build.save(exact(3), tmp_path / "i")
    caught = pytest.raises(ValueError, match=r"notes\.txt")
    with caught as error, build.replacing(tmp_path / "i", "index.json") as folder:
        exact(8).save(folder)
        (tmp_path / "i" / "notes.txt").write_text("shopping list")
    (finished,) = (path for path in tmp_path.iterdir() if path.name != "i")
    assert str(finished) in str(error.value)
    assert (tmp_path / "i" / "notes.txt").read_text() == "shopping list"
    (tmp_path / "i" / "notes.txt").unlink()
    build.save(exact(9), tmp_path / "i")
    assert np.load(finished / "keys.npy").tolist() == [8] and keys_of(tmp_path / "i") == [9]


@pytest.mark.parametrize("empty", [True, False])
def test_the_working_directory_stays(empty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not empty:
        build.save(exact(3), tmp_path / "bundle" / "index")
    before = contents(tmp_path)
    for place in (".", "../" + tmp_path.name, ""):
        with pytest.raises(ValueError, match=r"is not replaced|an empty path"):
            build.save(exact(8), place)
    assert contents(tmp_path) == before and pathlib.Path.cwd() == tmp_path


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "i").mkdir()
    build.save(exact(3), tmp_path / "i")
    assert keys_of(tmp_path / "i") == [3] and names(tmp_path) == ["i"]


def test_a_link_is_followed(tmp_path):
    """To an index, to nothing yet, and to a folder of something else."""
    (tmp_path / "disk").mkdir()
    build.save(exact(3), tmp_path / "disk" / "i")
    (tmp_path / "there").symlink_to(tmp_path / "disk" / "i")
    (tmp_path / "nothing").symlink_to(tmp_path / "disk" / "new")
    for link in ("there", "nothing"):
        build.save(exact(8), tmp_path / link)
        assert (tmp_path / link).is_symlink() and keys_of(tmp_path / link) == [8]
    assert names(tmp_path / "disk") == ["i", "new"]
    (tmp_path / "disk" / "i" / "notes.txt").write_text("shopping list")
    with pytest.raises(ValueError, match=r"notes\.txt.* is not replaced"):
        build.save(exact(9), tmp_path / "there")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "i").write_text("shopping list")
    with (
        pytest.raises(ValueError, match="is not replaced"),
        build.replacing(tmp_path / "i", "index.json"),
    ):
        pytest.fail("the work is done first")
    assert (tmp_path / "i").read_text() == "shopping list" and names(tmp_path) == ["i"]


MOUNTS = """
import os, pathlib, subprocess, sys
import numpy as np
from twotower.retrieval import build

def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)

def exact(key):
    return build.build(build.IndexConfig("exact"), np.array([key]), np.ones((1, 2), np.float32))

top = pathlib.Path(sys.argv[1])
mount("-t", "tmpfs", "none", top)
for name in ("lower", "upper", "work", "overlay", "mount"):
    (top / name).mkdir()
build.save(exact(3), top / "lower" / "i")
layers = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
mount("-t", "overlay", "none", "-o", layers, top / "overlay")
mount("-t", "tmpfs", "none", top / "mount")
for folder in (top / "overlay" / "i", top / "mount"):
    before = sorted(os.listdir(folder.parent))
    try:
        with build.replacing(folder, "index.json") as work:
            sys.exit("the work is done first")
    except ValueError as error:
        assert "cannot be moved" in str(error) and str(folder) in str(error), error
    assert sorted(os.listdir(folder.parent)) == before
assert build.load(top / "overlay" / "i").keys.tolist() == [3]
build.save(exact(8), top / "mount" / "i")
assert build.load(top / "mount" / "i").keys.tolist() == [8]
print("done")
"""


def test_a_mount_point_and_a_folder_of_an_image_are_refused_before_the_work(tmp_path):
    """`docker run -v` makes the first, `COPY` the second: neither can be renamed."""
    private = ["unshare", "--map-root-user", "--mount"]
    probe = f"mount -t tmpfs none {tmp_path} && mkdir {tmp_path}/l {tmp_path}/u {tmp_path}/w"
    probe += f" && mount -t overlay none -o lowerdir={tmp_path}/l,upperdir={tmp_path}/u,"
    probe += f"workdir={tmp_path}/w {tmp_path}/l"
    if not shutil.which("unshare") or subprocess.run([*private, "sh", "-c", probe]).returncode:
        pytest.skip("no mounts without privileges here (unshare)")
    command = [*private, sys.executable, "-c", MOUNTS, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.stdout == "done\n", run.stderr


# Interruptions.


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
    """Its own: another folder's may be somebody's work, and `[ab]` is no pattern."""
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


# Several writers.


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("exchanges", [True, False])
def test_two_writers_of_one_folder(is_there, exchanges, tmp_path, monkeypatch):
    """The second begins and ends while the first one works; the last to end stands there."""
    if not exchanges:
        from twotower.storage import replacing

        monkeypatch.setattr(replacing, "_exchange", lambda one, other: False)
    if is_there:
        build.save(exact(3), tmp_path / "i")
    with build.replacing(tmp_path / "i", "index.json") as folder:
        (folder / "live.json").write_text('{"format_version": 1, "sequence": 3}')
        build.save(exact(8), tmp_path / "i")
        assert keys_of(tmp_path / "i") == [8]
        build.save(exact(9), folder / "index")
    assert names(tmp_path) == ["i"] and names(tmp_path / "i") == ["index", "live.json"]
    assert keys_of(tmp_path / "i" / "index") == [9]


def test_a_writer_that_ends_while_another_one_looks(tmp_path, monkeypatch):
    """What is listed is then another folder's than what is there."""
    from twotower.storage import replacing

    build.save(exact(3), tmp_path / "i")
    real, calls = replacing._files, []

    def files(directory):
        calls.append(directory)
        if len(calls) == 1:
            hnsw = build.IndexConfig("hnsw")  # which has other files
            build.save(build.build(hnsw, np.arange(9), np.eye(9, dtype=np.float32)), tmp_path / "i")
        return real(directory)

    monkeypatch.setattr(replacing, "_files", files)
    build.save(exact(9), tmp_path / "i")
    assert keys_of(tmp_path / "i") == [9] and names(tmp_path) == ["i"]


def saving(folder, num: int) -> str:
    """Code that saves indexes of A and B in turn, `num` times, and prints one line a save."""
    return textwrap.dedent(f"""
        import numpy as np
        from twotower.retrieval import build
        indexes = [
            build.build(
                build.IndexConfig("exact"),
                np.arange(num),
                np.random.default_rng(num).normal(size=(num, 32)).astype(np.float32),
            )
            for num in {tuple(VERSIONS.values())}
        ]
        for step in range({num}):
            version = step % 2
            build.save(indexes[version], {str(folder)!r}, "AB"[version])
            print("saved", flush=True)
    """)


def consistent(index, version: str) -> None:
    num = VERSIONS[version]
    vectors = np.random.default_rng(num).normal(size=(num, 32)).astype(np.float32)
    assert len(index) == num and np.array_equal(index.live()[1], vectors)


def writers(folder, count: int, num: int) -> list[subprocess.Popen]:
    command = [sys.executable, "-c", saving(folder, num)]
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    return [subprocess.Popen(command, stdout=subprocess.PIPE, env=env) for _ in range(count)]


@pytest.mark.parametrize(("count", "num"), [(2, 20), pytest.param(3, 200, marks=pytest.mark.slow)])
def test_processes_that_write_one_folder_at_once(count, num, tmp_path):
    running = writers(tmp_path / "i", count, num)
    printed = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * count
    assert [len(text.split()) for text in printed] == [num] * count
    assert names(tmp_path) == ["i"]
    version = json.loads((tmp_path / "i" / "index.json").read_text())["model_version"]
    consistent(build.load(tmp_path / "i"), version)


@pytest.mark.parametrize(("num", "some"), [(40, 5), pytest.param(500, 50, marks=pytest.mark.slow)])
def test_a_folder_replaced_again_and_again_under_a_reader(num, some, tmp_path):
    """One index or the other, or one clear error; never the vectors of one under another's name."""
    (writer,) = writers(tmp_path / "i", 1, num)
    writer.stdout.readline()
    found = {"A": 0, "B": 0, "replaced": 0, "of another": 0}
    while writer.poll() is None:
        for version in "AB":
            try:
                index = build.load(tmp_path / "i", model_version=version)
                consistent(index, version)
                found[version] += 1
            except ValueError as error:
                is_other = f"not of {version!r}" in str(error)
                assert is_other or "was replaced" in str(error), error
                found["of another" if is_other else "replaced"] += 1
    assert writer.returncode == 0
    print(found)
    assert found["A"] + found["B"] >= some, found


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
