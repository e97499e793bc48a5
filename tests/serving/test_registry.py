"""The registry of bundles: which version is active, what was put, and what does not get in."""

import shutil

import numpy as np
import pytest
import tiny
from damaged_files import flip

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import BundleError
from twotower.retrieval import build
from twotower.serving import registry as registry_module
from twotower.serving.registry import Active, Registry


def test_put_activate_and_roll_back(bundle_folder, other_folder, tmp_path):
    registry = Registry(tmp_path / "registry")
    assert registry.active == Active() and registry.versions == []
    first, second = registry.put(bundle_folder), registry.put(other_folder)
    assert registry.put(bundle_folder) == first and registry.versions == [first, second]
    registry.activate(first)
    registry.activate(second)
    assert registry.active == Active(second, first)
    registry.activate(first, share=0.2)
    assert registry.active == Active(second, first, first, 0.2)
    assert registry.roll_back() == second and registry.active == Active(second, first)
    assert registry.roll_back() == first and registry.active == Active(first, second)
    assert registry.prune(keep=0) == [] and len(registry.versions) == 2
    for version in ("../versions", "", "x"):
        with pytest.raises(ValueError, match="no version"):
            registry.activate(version)
    with pytest.raises(ValueError, match="share"):
        registry.activate(first, share=0)


def test_a_first_version_has_none_before_it(bundle_folder, tmp_path):
    registry = Registry(tmp_path)
    registry.activate(registry.put(bundle_folder))
    with pytest.raises(ValueError, match="no version came before the active one"):
        registry.roll_back()
    with pytest.raises(ValueError, match="no name of a version"):
        registry.refuse("../active", [])


def test_what_is_refused_does_not_stay_active(bundle_folder, other_folder, tmp_path):
    registry = Registry(tmp_path)
    first, second = registry.put(bundle_folder), registry.put(other_folder)
    registry.activate(first)
    registry.refuse(first, ["its only one"])
    assert registry.active == Active(first)  # there is no other
    registry.activate(second, share=0.1)
    registry.refuse(second, ["worse"])
    assert registry.active == Active(first)
    registry.activate(second)
    registry.refuse(second, ["worse"])
    assert registry.active == Active(first) and registry.refused(second) == ["worse"]
    registry.accept(second)
    assert registry.refused(second) == []


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 5}', '{"versions": ""}', '{"version": "../x"}', '{"share": 2}']
)
def test_a_damaged_note_of_what_is_active(text, tmp_path):
    registry = Registry(tmp_path)
    (tmp_path / "active.json").write_text(text)
    with pytest.raises(ValueError, match=r"active.json is damaged: .* activate one of \[\]"):
        _ = registry.active


KILLED = """
import os, shutil, signal, sys
from twotower.serving import registry

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

holder = registry.Registry(sys.argv[1])
if sys.argv[2] == "prune":
    shutil.rmtree = kill
    holder.prune(1)
registry.verify = kill
holder.put(sys.argv[2])
"""


@pytest.mark.parametrize("does", ["put", "prune"])
def test_what_a_killed_process_left_goes_with_the_next_put(
    does, bundle_folder, other_folder, tmp_path
):
    registry = Registry(tmp_path)
    versions = [registry.put(bundle_folder), registry.put(other_folder)]
    what = bundle_folder if does == "put" else does
    assert tiny.python("-c", KILLED, tmp_path, what, check=False).returncode == -9
    left = [path.name for path in (tmp_path / "versions").iterdir()]
    assert len(left) == (3 if does == "put" else 2)  # none was put, or the first is half gone
    assert registry.versions == (versions if does == "put" else versions[1:])
    assert [registry.put(bundle_folder), registry.put(other_folder)] == versions
    assert {path.name for path in (tmp_path / "versions").iterdir()} == {*versions}


def test_a_put_leaves_that_of_another_process_alone(
    bundle_folder, other_folder, tmp_path, monkeypatch
):
    registry, verify, second = Registry(tmp_path), registry_module.verify, []

    def meanwhile(folder):
        if not second:
            second.append("")
            second[0] = registry.put(other_folder)
        verify(folder)

    monkeypatch.setattr(registry_module, "verify", meanwhile)
    first = registry.put(bundle_folder)
    assert registry.versions == [*second, first]
    assert {path.name for path in (tmp_path / "versions").iterdir()} == {*second, first}


def half(folder):
    shutil.rmtree(folder / "query_tower" / "variables")


def changed_index(folder):
    flip(next((folder / "index" / "hnsw").glob("*.npy")))


def keys_of_others(folder):
    """An index that is whole in itself, each of whose vectors is another item's."""
    index = Bundle(folder).retriever("hnsw")
    keys, vectors = index.live()
    turned = build.build(build.IndexConfig("hnsw"), np.roll(keys, 1), vectors)
    build.save(turned, folder / "index" / "hnsw", Bundle(folder).model_version)


def mixed_up(folder, other):
    shutil.rmtree(folder / "funnels")
    shutil.copytree(other / "funnels", folder / "funnels")


@pytest.mark.parametrize(
    "damage",
    [
        half,
        changed_index,
        keys_of_others,
        lambda folder: flip(folder / "items" / "vectors.npy"),
        lambda folder: flip(folder / "map" / "points.npy"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "query_tower" / "more.pb").write_bytes(b"x"),
        lambda folder: mixed_up(folder, folder.parent / "other"),
    ],
)
def test_a_damaged_bundle_does_not_get_in(copy, other_folder, damage, tmp_path):
    shutil.copytree(other_folder / "funnels", tmp_path / "other" / "funnels")
    damage(copy)
    registry = Registry(tmp_path / "registry")
    with pytest.raises(BundleError, match=str(copy)) as raised:
        registry.put(copy)
    assert ".partial-" not in str(raised.value)  # the copy, which is gone
    assert registry.versions == [] and not [*(tmp_path / "registry" / "versions").iterdir()]
