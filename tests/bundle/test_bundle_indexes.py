"""Indexes in a bundle: their names, what they leave behind, and those that are not searched."""

import hashlib
import json
import shutil

import pytest
from bundle_folders import put

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import add_index
from twotower.bundle.manifest import BundleError
from twotower.live.pair import Pair
from twotower.retrieval import build
from twotower.retrieval.build import IndexConfig


@pytest.mark.parametrize("name", [".", "..", "../evil", "a/b", "", ".hidden", "/tmp/evil", "a/"])
def test_names_of_indexes(copy, name, monkeypatch):
    def never(*_):
        pytest.fail("the work is done first")

    monkeypatch.setattr(build, "build", never)
    before = sorted(copy.parent.rglob("*"))
    with pytest.raises(ValueError, match="one plain name"):
        add_index(Bundle(copy), name, IndexConfig("exact"))
    assert sorted(copy.parent.rglob("*")) == before


def test_an_index_leaves_the_manifest_as_it_is(copy):
    """So nothing between the index and the manifest can be interrupted."""
    before = (copy / "manifest.json").read_bytes()
    bundle = Bundle(copy)
    add_index(bundle, "new", IndexConfig("exact"))
    # Killed in an earlier version behind the index and before the manifest:
    build.save(bundle.retriever("exact"), copy / "index" / "hnsw", bundle.model_version)
    assert (copy / "manifest.json").read_bytes() == before
    again = Bundle(copy)
    assert again.indexes == ["hnsw", "new"] and again.retriever("hnsw").is_exact


def test_left_overs_among_the_indexes(copy):
    """Of a killed writer: no index, and no reason to keep the bundle from being replaced."""
    left = copy / "index" / ".new.partial-aaaaaa_7"
    shutil.copytree(copy / "index" / "hnsw", left / "new")
    shutil.copytree(copy / "index" / "hnsw", copy / "index" / ".new.partial-aaaaaa_8" / "new")
    bundle = Bundle(copy)
    assert bundle.indexes == ["hnsw"]
    add_index(bundle, "new", IndexConfig("exact"))
    assert [path.name for path in sorted((copy / "index").iterdir())] == ["hnsw", "new"]
    (left / "new").mkdir(parents=True)
    put(copy, copy)
    assert Bundle(copy).indexes == ["hnsw", "new"]


@pytest.mark.parametrize("verify", [True, False])
def test_no_index_of_damaged_vectors(copy, verify):
    """Damaged behind the opening, or opened without a look."""
    bundle = Bundle(copy) if verify else None
    path = copy / "items" / "vectors.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000] + bytes(1000))
    with pytest.raises(BundleError, match=r"vectors\.npy"):
        add_index(bundle or Bundle(copy, verify=False), "new", IndexConfig("exact"))
    with pytest.raises(BundleError, match=r"vectors\.npy"):
        Bundle(copy)
    assert [name.name for name in (copy / "index").iterdir()] == ["hnsw"]


def test_index_of_another_training(copy):
    """The same vectors under another model's name: an index that must not be searched."""
    bundle = Bundle(copy)
    build.save(bundle.retriever("exact"), copy / "index" / "other", model_version="another")
    with pytest.raises(BundleError, match="another"):
        bundle.retriever("other")
    with pytest.raises(BundleError, match="build_index"):
        bundle.retriever("nope")


def test_an_index_that_names_a_host(copy):
    folder = copy / "index" / "hnsw"
    text = json.loads((folder / "index.json").read_text())
    del text["sha256"]
    text |= {"backend": "milvus", "parameters": {"uri": "http://127.0.0.1:9", "collection": "c"}}
    digest = hashlib.sha256(json.dumps(text, indent=1).encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps({**text, "sha256": digest}, indent=1) + "\n")
    bundle = Bundle(copy)
    for ask in (bundle.retriever, lambda name: Pair.from_bundle(bundle, name)):
        with pytest.raises(BundleError, match=r"allowed_uris=\['http://127.0.0.1:9'\]"):
            ask("hnsw")
