"""Bundles that others replace while they are open, opened or built upon."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from bundle_folders import inputs, put

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import add_index
from twotower.bundle.item_map import ItemMap
from twotower.bundle.manifest import BundleError
from twotower.bundle.weights import warm_start
from twotower.live.pair import Pair
from twotower.retrieval import build
from twotower.retrieval.build import IndexConfig
from twotower.storage import description
from twotower.training.training import Training

PARTS = {
    "query_tower": lambda bundle: bundle.query_tower,
    "catalogue": lambda bundle: bundle.catalogue,
    "sample_queries": lambda bundle: bundle.sample_queries,
    "hnsw": lambda bundle: bundle.retriever("hnsw"),
    "exact pair": Pair.from_bundle,
    "hnsw pair": lambda bundle: Pair.from_bundle(bundle, "hnsw"),
    "new index": lambda bundle: add_index(bundle, "new", IndexConfig("exact")),
    "warm start": lambda bundle: warm_start(
        Training(tiny.dataset(), tiny.split(), tiny.recipe()), bundle
    ),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_a_bundle_replaced_under_an_open_one(copy, other, part, verify):
    """A part of another training is refused, whenever it is loaded."""
    bundle = Bundle(copy, verify)
    vectors = np.array(bundle.vectors)
    put(other, copy)
    with pytest.raises(BundleError, match=r"open it again|of model"):
        PARTS[part](bundle)
    np.testing.assert_array_equal(bundle.vectors, vectors)  # those of the opening
    assert Bundle(copy).indexes == ["hnsw"] and [p.name for p in copy.parent.iterdir()] == [
        "bundle"
    ]


def test_the_same_bundle_put_back(copy, exported):
    """A copy of the same training is not another bundle."""
    bundle = Bundle(copy)
    put(exported, copy)
    assert bundle.query_tower(inputs()).shape == (1, 8) and len(bundle.sample_queries)


OVERWRITING = """
import pathlib, subprocess, sys
import numpy as np
from twotower.bundle.bundle import Bundle
bundle = Bundle(sys.argv[1])
exact = bundle.retriever("exact")
vectors = np.array(exact.live()[1])
subprocess.run(["cp", "-r", f"{sys.argv[2]}/.", sys.argv[1]], check=True)
assert np.array_equal(exact.live()[1], vectors) and np.array_equal(bundle.vectors, vectors)
(pathlib.Path(sys.argv[1]) / "items/vectors.npy").write_bytes(b"")
assert np.array_equal(exact.live()[1], vectors) and np.array_equal(bundle.vectors, vectors)
"""


def test_what_is_loaded_stays_when_files_are_overwritten(copy, other):
    """By `cp -r other/. bundle`, which empties each file before it writes it."""
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    command = [sys.executable, "-c", OVERWRITING, str(copy), str(other)]
    assert subprocess.run(command, env=env).returncode == 0  # -7 is SIGBUS


def test_overwritten_while_it_is_opened(copy, other, monkeypatch):
    """The other bundle is copied over it after the manifest was read: it is read once more."""
    real, calls = json.loads, []

    def overwrite(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            subprocess.run(["cp", "-r", f"{other}/.", copy], check=True)
        return real(*args, **kwargs)

    monkeypatch.setattr(json, "loads", overwrite)
    bundle, truth = Bundle(copy), Bundle(other)
    assert bundle.model_version == truth.model_version
    np.testing.assert_array_equal(bundle.vectors, truth.vectors)


@pytest.mark.parametrize("verify", [True, False])
def test_replaced_while_the_tower_is_read(copy, other, monkeypatch, verify):
    import tensorflow as tf

    real, bundle = tf.saved_model.load, Bundle(copy, verify)

    def load(path):
        put(other, copy)
        return real(path)

    monkeypatch.setattr(tf.saved_model, "load", load)
    with pytest.raises(BundleError, match="open it again"):
        _ = bundle.query_tower


@pytest.mark.parametrize("moment", [(json, "loads"), (hashlib, "file_digest"), (np, "load")])
def test_replaced_once_while_it_is_opened(copy, other, monkeypatch, moment):
    """The answer is the new bundle, whole."""
    real, calls = getattr(*moment), []

    def replace(*args, **kwargs):
        calls.append(moment)
        if len(calls) == 1:
            put(other, copy)
        return real(*args, **kwargs)

    monkeypatch.setattr(*moment, replace)
    bundle, truth = Bundle(copy), Bundle(other)
    assert bundle.model_version == truth.model_version
    np.testing.assert_array_equal(bundle.vectors, truth.vectors)


def test_replaced_each_time_it_is_opened(copy, other, exported, monkeypatch):
    real, calls = np.load, []

    def replace(*args, **kwargs):
        calls.append(args)
        put(exported if len(calls) % 2 else other, copy)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", replace)
        with pytest.raises(BundleError, match="was replaced while it was read, twice"):
            Bundle(copy)
    Bundle(copy)


def test_a_bundle_replaced_while_an_index_of_it_is_built(copy, other, monkeypatch):
    """The index of the old one does not come into the new one, even in its last step."""
    real = build.write

    def write(*args, **kwargs):
        real(*args, **kwargs)
        put(other, copy)

    monkeypatch.setattr(build, "write", write)
    with pytest.raises(BundleError, match="open it again"):
        add_index(Bundle(copy), "new", IndexConfig("exact"))
    assert Bundle(copy).indexes == ["hnsw"] and [p.name for p in copy.parent.iterdir()] == [
        "bundle"
    ]


REPLACING = """
import json, random, shutil, sys, time
from twotower.retrieval import build
rng, (folder, *sources) = random.Random(0), json.loads(sys.argv[1])
for step in range(int(sys.argv[2])):
    with build.replacing(folder, "manifest.json") as temporary:
        shutil.copytree(sources[step % 2], temporary, dirs_exist_ok=True)
    time.sleep(rng.uniform(0, float(sys.argv[3])))
"""


@pytest.mark.parametrize(("num", "pause"), [(2, 1), pytest.param(100, 4, marks=pytest.mark.slow)])
def test_a_bundle_replaced_again_and_again_under_a_reader(num, pause, copy, exported, other):
    """Tower and index of one training, or one clear error."""
    truths = [Bundle(folder) for folder in (exported, other)]
    expected = {truth.model_version: truth.query_tower(inputs()) for truth in truths}
    vectors = {truth.model_version: np.array(truth.vectors) for truth in truths}
    assert not np.allclose(*expected.values(), atol=1e-3)
    folders = json.dumps([str(path) for path in (copy, other, exported)])
    command = [sys.executable, "-c", REPLACING, folders, str(num), str(pause)]
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    writer, found = subprocess.Popen(command, env=env), dict.fromkeys([*expected, "refused"], 0)
    while writer.poll() is None:
        try:
            bundle = Bundle(copy)
            pair = Pair.from_bundle(bundle, ("exact", "hnsw")[found["refused"] % 2])
            genres = bundle.catalogue.items["genres"]
        except BundleError as error:
            found["refused"] += 1
            assert any(
                words in str(error) for words in ("open it again", "of model", "was replaced")
            ), error
            continue
        version = pair.model_version
        found[version] += 1
        np.testing.assert_allclose(pair.query_tower(inputs()), expected[version], atol=1e-5)
        np.testing.assert_array_equal(pair.retriever.live()[1], vectors[version])
        assert len(genres)
    print(found)
    assert writer.returncode == 0 and (num < 9 or all(found.values())), found
    Pair.from_bundle(Bundle(copy), "hnsw")


def test_a_bundle_replaced_while_a_part_is_added(copy, other, monkeypatch):
    bundle = Bundle(copy)
    points = np.full((len(bundle.keys), 2), 0.5, np.float32)
    hashes = description.hashes

    def replaced_meanwhile(folder):
        put(other, copy)
        return hashes(folder)

    monkeypatch.setattr(description, "hashes", replaced_meanwhile)
    with pytest.raises(BundleError, match="another bundle has taken the place"):
        bundle.add_map(ItemMap(bundle.keys, points, 0.9))
    assert not Bundle(copy).has_map
