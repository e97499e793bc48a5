"""A folder of an index that is replaced, or changed, while it is read."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from twotower.retrieval import build


def pair_of_indexes(folder):
    """Two exact indexes of one size, of models A and B, saved as `a` and `b`."""
    for version, scale in (("A", 1), ("B", 9)):
        vectors = scale * np.eye(2, dtype=np.float32)
        index = build.build(build.IndexConfig("exact"), np.array([3, 1]), vectors)
        build.save(index, folder / version.lower(), version)
    return {version: folder / version.lower() for version in "AB"}


def at(monkeypatch, owner, name: str, times: int, change):
    """Calls `change()` before each of the first calls of a function."""
    real, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) <= times:
            change()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


def moments():
    """Behind the description, between the first file's hash and the next, behind all hashes."""
    return [(json, "loads"), (hashlib, "file_digest"), (np, "load")]


@pytest.mark.parametrize("moment", range(3))
def test_replaced_once_while_it_is_read(tmp_path, monkeypatch, moment):
    """The answer is the new index, whole."""
    saved, place = pair_of_indexes(tmp_path), tmp_path / "i"
    build.save(build.load(saved["A"]), place, "A")
    other = build.load(saved["B"])
    at(monkeypatch, *moments()[moment], 1, lambda: build.save(other, place, "B"))
    assert build.load(place).live()[1].max() == 9


def test_moved_away_and_back_while_it_is_read(tmp_path, monkeypatch):
    """The files are A's when they are hashed and afterwards, and B's when they are read."""
    saved, real, calls = pair_of_indexes(tmp_path), np.load, []

    def load(path, *args, **kwargs):
        calls.append(path)
        if len(calls) > 5:  # the arrays of one load
            return real(path, *args, **kwargs)
        os.rename(saved["A"], tmp_path / "away")
        os.rename(saved["B"], saved["A"])
        array = real(path, *args, **kwargs)
        os.rename(saved["A"], saved["B"])
        os.rename(tmp_path / "away", saved["A"])
        return array

    monkeypatch.setattr(np, "load", load)
    assert build.load(saved["A"], model_version="A").live()[1].max() == 1 and len(calls) == 10


@pytest.mark.parametrize("moment", range(3))
def test_replaced_while_a_version_is_asked_for(tmp_path, monkeypatch, moment):
    """Never the vectors of B as those of A."""
    saved = pair_of_indexes(tmp_path)
    place = tmp_path / "i"
    build.save(build.load(saved["A"]), place, "A")
    at(
        monkeypatch,
        *moments()[moment],
        1,
        lambda: shutil.rmtree(place) or shutil.copytree(saved["B"], place),
    )
    with pytest.raises(ValueError, match="of model 'B', not of 'A'"):
        build.load(place, model_version="A")


def test_replaced_each_time_it_is_read(tmp_path, monkeypatch):
    saved = pair_of_indexes(tmp_path)
    place = tmp_path / "i"
    build.save(build.load(saved["A"]), place, "A")
    other = build.load(saved["B"])
    with monkeypatch.context() as patch:
        at(patch, np, "load", 100, lambda: build.save(other, place, "B"))
        with pytest.raises(ValueError, match="was replaced while it was read, twice"):
            build.load(place)
    assert build.load(place, model_version="B").live()[1].max() == 9


def test_a_file_changed_between_its_hash_and_its_use(tmp_path, monkeypatch):
    """By a copy over the folder, not by `save`: the same name, and even the same size."""
    saved = pair_of_indexes(tmp_path)
    other = (saved["B"] / "vectors.npy").read_bytes()
    at(monkeypatch, np, "load", 1, lambda: (saved["A"] / "vectors.npy").write_bytes(other))
    with pytest.raises(ValueError, match=r"vectors\.npy was changed while it was read"):
        build.load(saved["A"])
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"vectors\.npy is truncated or changed"):
        build.load(saved["A"])


def test_vectors_on_disk_are_those_that_were_checked(tmp_path):
    """Memory-mapped, they stay what they were when the folder is replaced."""
    saved = pair_of_indexes(tmp_path)
    index = build.load(saved["A"], mmap=True)
    build.save(build.load(saved["B"]), saved["A"], "B")
    assert np.asarray(index.live()[1]).max() == 1
