"""A folder is replaced whole or not at all, and never one that holds something else."""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from exact_indexes import exact, keys_of, names

from twotower.retrieval import build
from twotower.storage import description
from twotower.storage.replacing import replacing

KINDS = {"bundle": "manifest.json", "snapshot": "live.json", "index": "index.json"}


def contents(folder) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


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


def an_empty_folder_in_a_folder(folder):
    (folder / "sub").mkdir()


def an_index_with_an_empty_folder(folder):
    an_index_with_a_file(folder)
    (folder / "notes.txt").unlink()
    (folder / "sub").mkdir()


def an_index_with_an_index_where_a_bundle_has_one(folder):
    an_index_with_a_file(folder)
    (folder / "notes.txt").unlink()
    build.save(exact(4), folder / "index" / "mine")


OTHERS = [
    an_empty_folder_in_a_folder,
    an_index_with_an_empty_folder,
    an_index_with_an_index_where_a_bundle_has_one,
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
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    with pytest.raises(ValueError, match="is not replaced"):
        build.save(exact(8), folder)
    with pytest.raises(ValueError, match="is not replaced"), build.replacing(folder, "index.json"):
        entered.append("the work is done first")
    assert contents(folder) == before and not entered
    assert sorted(path for path in folder.rglob("*") if path.is_dir()) == folders
    assert names(tmp_path) == ["f"]


def test_empty_folders_of_a_bundle_are_part_of_it(tmp_path):
    """TensorFlow writes `assets` without a file; a killed writer leaves `index` empty."""
    for _ in range(2):
        with replacing(tmp_path / "b", "manifest.json") as new:
            (new / "query_tower" / "assets").mkdir(parents=True)
            (new / "query_tower" / "saved_model.pb").write_bytes(b"model")
            entries = {"format_version": 1, "model_version": "m", "files": description.hashes(new)}
            description.write(new / "manifest.json", entries)
            (new / "index").mkdir()
    assert names(tmp_path) == ["b"]
    (tmp_path / "b" / "index").rmdir()
    for name in ("index", "query_tower/link"):
        (tmp_path / "b" / name).symlink_to(tmp_path)
        refused = pytest.raises(ValueError, match=f"holds {name}, which is no part of a bundle")
        with refused, replacing(tmp_path / "b", "manifest.json"):
            pytest.fail("the work is done first")
        (tmp_path / "b" / name).unlink()


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
