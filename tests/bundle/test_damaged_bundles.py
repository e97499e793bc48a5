"""Everything that can be wrong with the folder of a bundle, and its manifest."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from bundle_folders import described

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import BundleError
from twotower.storage import description


def test_every_truncated_or_missing_file_is_named(copy):
    names = list(json.loads((copy / "manifest.json").read_text())["files"])
    for name in names:
        path = copy / name
        whole = path.read_bytes()
        if whole:
            path.write_bytes(whole[:-1])
            with pytest.raises(BundleError, match=path.name):
                Bundle(copy)
        path.unlink()
        with pytest.raises(BundleError, match=path.name):
            Bundle(copy)
        path.write_bytes(whole)
    Bundle(copy)
    for path in (copy / "index" / "hnsw").iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(BundleError, match=path.name):
            Bundle(copy).retriever("hnsw")
        path.write_bytes(whole)
    Bundle(copy).retriever("hnsw")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "does not describe a bundle"),
        ('{"a": 1}', "does not describe a bundle"),
        ("[" * 100_000, "does not describe a bundle"),
        ("\0", "does not describe a bundle"),
        (None, "no bundle"),
    ],
)
def test_foreign_folder(copy, text, message):
    path = copy / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(BundleError, match=message):
        Bundle(copy)


def test_newer_format(copy):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(BundleError, match="newer"):
        Bundle(copy)


def test_a_bundle_of_the_first_format(copy):
    """Its manifest carries no hash over itself, and its towers no version."""
    described(copy, format_version=1)
    with pytest.raises(BundleError, match=r"format 1 is older than this code reads \(2\)"):
        Bundle(copy)


def test_an_edited_manifest(copy):
    """Whatever is changed: it has a hash over itself."""
    path = copy / "manifest.json"
    text = path.read_text()
    for old, new in (('"dot"', '"cosine"'), ('"refit": false', '"refit": true'), ("\n", "\n\n")):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(BundleError, match="its sha256 differs"):
            Bundle(copy)
    rng = np.random.default_rng(3)
    for place in rng.choice(len(text), 40, replace=False):
        path.write_bytes(
            bytes([*text[:place].encode(), text.encode()[place] ^ 2]) + text[place + 1 :].encode()
        )
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle(copy)


WRONG = [
    {"files": {}},
    {"files": {"items/keys.npy": 64 * "0"}},
    {"files": []},
    {"files": {"items/keys.npy": {"sha256": []}}},
    {"files": {"../../etc/passwd": 64 * "0"}},
    {"model_version": None},
    {"model_version": 3},
    {"model_version": ""},
    {"metric": None},
    {"metric": "manhattan"},
    {"dim": "8"},
    {"dim": 8.0},
    {"dim": True},
    {"num_items": [300]},
    {"num_items": None},
    {"query_inputs": {}},
    {"query_inputs": [3]},
    {"query_inputs": [{"name": "user_id"}]},
    {"query_inputs": [{"name": "user_id", "dtype": "string", "shape": 3, "missing": ""}]},
    {"format_version": "1"},
    {"format_version": None},
    {"format_version": -1},
]


@pytest.mark.parametrize("entries", WRONG)
def test_a_manifest_of_other_types(copy, entries):
    """With the right hash over itself; and none of them reaches a TypeError later."""
    described(copy, **entries)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle(copy)


def an_input(**entries):
    return {"name": "user_id", "dtype": "string", "shape": [None], "missing": ""} | entries


NESTED = [
    {"ancestors": 3},
    {"ancestors": None},
    {"ancestors": ["0123456789abcdef", 3]},
    {"query_inputs": []},
    {"query_inputs": [an_input(shape=[None, "x"])]},
    {"query_inputs": [an_input(shape=[None, 2.0])]},
    {"query_inputs": [an_input(shape=[])]},
    {"query_inputs": [an_input(dtype="nope")]},
    {"item_inputs": None},
    {"item_inputs": [an_input(name=3)]},
    {"dataset_reading": 3},
]


@pytest.mark.parametrize("entries", NESTED)
def test_a_manifest_of_other_types_within_its_entries(copy, entries):
    (name,) = entries
    described(copy, **entries)
    with pytest.raises(BundleError, match=rf"manifest\.json .*: {name} must"):
        Bundle(copy)


def test_a_manifest_without_entries_of_later_versions(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("ancestors", "dataset_reading", "item_inputs", "sha256"):
        manifest.pop(name)
    description.write(copy / "manifest.json", manifest)
    assert Bundle(copy).lineage.ancestors == (manifest["model_version"],)


def test_a_manifest_of_other_inputs_than_the_tower(copy):
    described(copy, query_inputs=[an_input()])  # and none for the history
    with pytest.raises(BundleError, match=r"manifest\.json: query_inputs .*'history'"):
        _ = Bundle(copy).query_tower


@pytest.mark.parametrize("name", ["keys", "vectors", "sample_queries"])
def test_arrays_of_another_type(copy, name):
    path = copy / "items" / f"{name}.npy"
    np.save(path, np.load(path).astype(np.float64))
    files = json.loads((copy / "manifest.json").read_text())["files"]
    files[f"items/{name}.npy"] = hashlib.sha256(path.read_bytes()).hexdigest()
    described(copy, files=files)
    with pytest.raises(BundleError, match=rf"{name}\.npy: expected"):
        _ = Bundle(copy).sample_queries


@pytest.mark.parametrize("name", ["saved_model.cpb", "assets/more.txt"])
def test_a_file_that_is_not_listed_in_the_tower(copy, name):
    (copy / "query_tower" / name).write_bytes(b"")
    (copy / "notes.txt").write_text("whatever else is in a bundle is never read")
    with pytest.raises(BundleError, match=rf"{name} is no part of"):
        _ = Bundle(copy).query_tower


def test_a_tower_of_another_training(copy, other):
    """Its files taken from another bundle, and nobody compares hashes."""
    shutil.rmtree(copy / "query_tower")
    shutil.copytree(other / "query_tower", copy / "query_tower")
    with pytest.raises(BundleError, match=r"query_tower.* sha256 differs"):
        Bundle(copy)
    with pytest.raises(BundleError, match=r"query_tower is of model '\w+', not of '\w+'"):
        _ = Bundle(copy, verify=False).query_tower
