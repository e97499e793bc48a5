"""Funnels on disk whose files somebody changed, with the right hashes over them."""

import json

import numpy as np
import pytest
from made_up_parts import popular

from twotower.funnel import saving
from twotower.funnel.filters import Blocked, Filters, Seen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import Quotas
from twotower.funnel.sources.collaborative import Ease
from twotower.funnel.sources.popularity import Popularity


def saved(tmp_path, source=None):
    """A funnel on disk, its folder and its description."""
    rules = [Blocked.of({"u": [1]}), Seen()]
    sources = {"popular": Inlet(source or popular(5), np.int64(3))}
    funnel = Funnel(sources, Quotas({"popular": np.int64(2)}), [Filters(rules)])
    saving.save(funnel, tmp_path / "f", "m1")
    return tmp_path / "f", json.loads((tmp_path / "f" / "funnel.json").read_text())


def rewrite(folder, entries) -> None:
    """The description with hashes of the files as they are now."""
    entries["files"] = {
        name: digest
        for name, digest in saving.description.hashes(folder).items()
        if name != "funnel.json"
    }
    saving.description.write(folder / "funnel.json", entries)


def test_settings_of_numpy_types_are_saved(tmp_path):
    folder, entries = saved(tmp_path)
    assert entries["sources"]["popular"]["k"] == 3
    assert saving.load(folder, None, "m1").merge.quotas == {"popular": 2}


@pytest.mark.parametrize("number", [2**63, 2**70, -(2**64)])
def test_integers_that_no_array_holds_are_named(tmp_path, number):
    folder, entries = saved(tmp_path)
    entries["sources"]["popular"]["k"] = number
    rewrite(folder, entries)
    message = f"does not describe a funnel: an integer must fit an int64; got {number}"
    with pytest.raises(ValueError, match=message):
        saving.load(folder, None, "m1")


@pytest.mark.parametrize("name", ["../../x", "../x", "a/b", "/tmp/x"])
def test_names_with_a_path_in_them_read_nothing(tmp_path, monkeypatch, name):
    folder, entries = saved(tmp_path)
    entries["sources"][name] = entries["sources"]["popular"]
    rewrite(folder, entries)
    read, load = [], np.load
    monkeypatch.setattr(np, "load", lambda path, **more: read.append(path) or load(path, **more))
    with pytest.raises(ValueError, match=r"funnel\.json"):
        saving.load(folder, None, "m1")
    assert all(path.resolve().is_relative_to(folder / "sources" / "popular") for path in read)


@pytest.mark.parametrize(
    "file, values, message",
    [
        ("sources/popular/keys.npy", np.arange(5.0), r"keys.*int.*got.*float64"),
        ("sources/popular/keys.npy", np.arange(10).reshape(5, 2), r"keys.*got.*\[5, 2\]"),
        ("sources/popular/keys.npy", np.arange(4), r"scores.*num_known.*4.*got.*\[5\]"),
        ("sources/popular/scores.npy", np.array(3.0), r"scores.*got.*\[\]"),
        ("stages/0/0/user_id.npy", np.array([1]), r"user_id.*got.*int64"),
    ],
)
def test_arrays_that_a_part_does_not_expect(tmp_path, file, values, message):
    folder, entries = saved(tmp_path)
    np.save(folder / file, values)
    rewrite(folder, entries)
    with pytest.raises(ValueError, match=rf"funnel\.json.*{message}"):
        saving.load(folder, None, "m1")


@pytest.mark.parametrize("keys", [[-7, 0], [0, 2**60]])
def test_keys_that_no_table_holds(tmp_path, keys):
    folder, entries = saved(tmp_path, Ease(np.arange(2), np.eye(2, dtype=np.float32)))
    np.save(folder / "sources/popular/items.npy", np.array(keys))
    rewrite(folder, entries)
    with pytest.raises(ValueError, match=r"funnel\.json: its parts do not fit together"):
        saving.load(folder, None, "m1")


def test_arrays_of_objects_are_neither_saved_nor_read(tmp_path):
    folder, entries = saved(tmp_path)
    np.save(folder / "sources/popular/keys.npy", np.array([{}] * 5), allow_pickle=True)
    rewrite(folder, entries)
    with pytest.raises(ValueError, match="allow_pickle"):
        saving.load(folder, None, "m1")
    objects = Popularity(np.array([1, 2], object), np.float32([2, 1]))
    with pytest.raises(ValueError, match=r"keys.*int.*got.*object"):
        saved(tmp_path / "other", objects)
    assert not (tmp_path / "other" / "f").exists()
