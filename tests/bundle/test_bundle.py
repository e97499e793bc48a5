"""What an exported bundle holds and answers, in this package and without it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import export
from twotower.bundle.weights import warm_start
from twotower.data.splits import make_split
from twotower.training.training import Training

PLAIN = """
import json, sys, os
import numpy as np, tensorflow as tf
folder = sys.argv[1]
assert not any(name.startswith("twotower") for name in sys.modules)
def signature(name):
    model = tf.saved_model.load(f"{folder}/{name}")
    signature.kept = getattr(signature, "kept", []) + [model]
    return model.signatures["serving_default"]
query = dict(user_id=tf.constant(["u00001", "nobody"]),
             history=tf.constant([["i00003", "unknown", "i00007"], ["", "", ""]]))
none = tf.constant([[""], [""]])
vectors = signature("query_tower")(**query)["embedding"].numpy()
items = np.load(f"{folder}/items/vectors.npy")
retrieve = signature("retrieve")
some = retrieve(k=tf.constant(5), exclude=none, **query)
best = some["ids"].numpy()[0, 0]
less = retrieve(k=tf.constant(5), exclude=tf.constant([[best, b"unknown"], [b"", b""]]), **query)
far = retrieve(k=tf.constant(10**6), exclude=none, **query)
ids = far["ids"].numpy()
nothing = retrieve(k=tf.constant(3), exclude=tf.constant(ids), **query)
try:
    retrieve(k=tf.constant(0), exclude=none, **query)
    message = ""
except tf.errors.InvalidArgumentError as error:
    message = str(error)
print(json.dumps(dict(
    finite=bool(np.isfinite(vectors).all()), vectors=vectors.tolist(),
    scores=some["scores"].numpy().tolist(),
    truth=np.sort(vectors @ items.T)[:, ::-1][:, :5].tolist(),
    best=best.decode(), less=[i.decode() for i in less["ids"].numpy()[0]],
    far=far["counts"].numpy().tolist(), num_items=len(items),
    nothing=nothing["counts"].numpy().tolist(),
    blank=nothing["ids"].numpy().ravel().astype(str).tolist(),
    message=message)))
"""


def test_saved_models_in_a_process_with_tensorflow_alone(exported, training, tmp_path):
    """Unseen user, empty history, unknown item, k past the catalogue, all excluded, k of 0."""
    run = subprocess.run(
        [sys.executable, "-c", PLAIN, str(exported)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    got = json.loads(run.stdout.splitlines()[-1])
    assert got["finite"]
    np.testing.assert_allclose(got["scores"], got["truth"], atol=1e-5)
    assert got["best"] not in got["less"] and len(set(got["less"])) == 5
    assert got["far"] == [got["num_items"]] * 2
    assert got["nothing"] == [0, 0] and set(got["blank"]) == {""}
    assert "k must be at least 1" in got["message"]


def test_query_tower_and_vectors_are_the_trainings(exported, training):
    bundle = Bundle(exported)
    cases = training.split.cases.take(np.arange(20))
    np.testing.assert_allclose(
        bundle.query_tower(training.raw_query_inputs(cases)),
        training.query_vectors(cases),
        atol=1e-5,
    )
    np.testing.assert_allclose(bundle.vectors, training.item_vectors(bundle.keys), atol=1e-5)


def test_scann_saved_model_holds_a_scann_op_and_agrees_with_exact(exported, training):
    pytest.importorskip("scann")
    assert b"Scann" in (exported / "retrieve_scann" / "saved_model.pb").read_bytes()
    import tensorflow as tf

    inputs = training.raw_query_inputs(training.split.cases.take(np.arange(16)))
    feed = {name: tf.constant(values, tf.string) for name, values in inputs.items()}
    answers = {}
    for name in ("retrieve", "retrieve_scann"):
        model = tf.saved_model.load(str(exported / name))
        for width in (1, 5000):  # so many exclusions are more than ScaNN reorders
            answers[name, width] = model.signatures["serving_default"](
                k=tf.constant(10), exclude=tf.fill([16, width], ""), **feed
            )
    for width in (1, 5000):
        exact, found = (
            answers[name, width]["ids"].numpy() for name in ("retrieve", "retrieve_scann")
        )
        share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found)])
        assert share >= 0.97


def test_manifest_names_every_input(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["query_inputs"] == [
        {"name": "user_id", "dtype": "string", "shape": [None], "missing": ""},
        {"name": "history", "dtype": "string", "shape": [None, None], "missing": ""},
    ]
    for key in ("format_version", "model_version", "dataset_fingerprint", "protocol", "versions"):
        assert manifest[key], key
    on_disk = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
    indexes = {name for name in on_disk if name.startswith("index/hnsw/")}  # see index.json
    assert set(manifest["files"]) == on_disk - indexes - {"manifest.json"} and indexes


def test_nothing_is_pickled(exported):
    assert not list(exported.rglob("*.pkl"))
    for path in exported.rglob("*.np[yz]"):
        np.load(path, allow_pickle=False)


def test_saved_towers_say_their_training(exported):
    """To whoever loads them without this package."""
    import tensorflow as tf

    version = json.loads((exported / "manifest.json").read_text())["model_version"]
    for name in ("query_tower", "item_tower"):
        model = tf.saved_model.load(str(exported / name))
        assert model.model_version.numpy().decode() == version


def test_wrong_inputs_are_named(exported):
    with pytest.raises(ValueError, match="history"):
        Bundle(exported).query_tower({"user_id": np.array(["a"])})
    bundle = Bundle(exported)
    names = {spec["name"]: spec["shape"] for spec in bundle.manifest["query_inputs"]}
    assert names == {"user_id": [None], "history": [None, None]}
    good = {"user_id": np.array(["a"]), "history": np.array([["i00001", "i00002"]])}
    assert bundle.query_tower(good).shape == (1, bundle.manifest["dim"])
    for wrong, message in (
        ({"history": [["i00001"], ["i00001", "i00002"]]}, "history: expected string, every row of"),
        ({"history": np.array([[1, 2]])}, "history: expected string"),
        ({"history": np.array([["i00001"]] * 2)}, "a row a query each"),
    ):
        with pytest.raises(ValueError, match=message):
            bundle.query_tower(good | wrong)


def test_warm_start_goes_by_id(exported, training):
    """Items in another order and a new one among them: known ids get their old rows."""
    import dataclasses

    dataset = training.dataset
    items = dataset.items.iloc[::-1].reset_index(drop=True)
    turned = dataclasses.replace(dataset, items=items)
    split = make_split(turned, "random")
    fresh = Training(turned, split, tiny.recipe(fit={"seed": 5}))
    counts = warm_start(fresh, Bundle(exported))
    assert counts["fresh"] == 0 and counts["matched"] >= 4
    ids = turned.catalogue.ids_of(fresh.split.candidates)
    old = training.item_vectors(dataset.catalogue.keys_of(ids))
    np.testing.assert_allclose(fresh.item_vectors(fresh.split.candidates), old, atol=1e-5)


def test_a_bundle_of_one_tower_for_both_sides(tmp_path):
    recipe = tiny.recipe(
        query={"features": ("history",), "shared": "tower"},
        item={"features": ("item_id",), "unknown_rate": 0.0},
    )
    training = Training(tiny.dataset(), tiny.split(), recipe)
    bundle = export(training, tmp_path / "bundle", {})
    ids = bundle.catalogue.ids_of(np.asarray(bundle.keys)[:5])
    found = bundle.query_tower({"history": ids[:, None]})
    np.testing.assert_allclose(found, np.asarray(bundle.vectors)[:5], atol=1e-5)
    again = Training(tiny.dataset(), tiny.split(), recipe)
    assert warm_start(again, bundle)["fresh"] == 0
    keys = again.split.candidates
    np.testing.assert_allclose(again.item_vectors(keys), np.asarray(bundle.vectors), atol=1e-6)
