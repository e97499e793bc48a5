"""Export, load, and everything that can be wrong with a folder."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny

from twotower.bundle import export as exporting
from twotower.bundle.bundle import Bundle
from twotower.bundle.export import add_index, export
from twotower.bundle.manifest import BundleError
from twotower.bundle.weights import warm_start
from twotower.data.splits import make_split
from twotower.live.pair import Pair
from twotower.retrieval import build
from twotower.retrieval.backends.scann_index import available
from twotower.retrieval.build import IndexConfig
from twotower.training.trainer import Training


@pytest.fixture(scope="module")
def training():
    """With the weights that it begins with: a bundle holds any."""
    return Training(tiny.dataset(), tiny.split(), tiny.recipe())


@pytest.fixture(scope="module")
def exported(training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "bundle"
    bundle = export(training, folder, {"refit": False}, scann=available())
    add_index(bundle, "hnsw", IndexConfig("hnsw"))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The bundle of another training with the same recipe, items and index."""
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"seed": 7}))
    folder = tmp_path_factory.mktemp("other") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting.scann_index, "available", lambda: False)  # not used here, and slow
        add_index(export(training, folder), "hnsw", IndexConfig("hnsw"))
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return pathlib.Path(shutil.copytree(exported, tmp_path / "bundle"))


def put(source: pathlib.Path, folder: pathlib.Path) -> None:
    """A bundle takes the place of another one, as an export does it."""
    with build.replacing(folder, "manifest.json") as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def described(folder: pathlib.Path, **entries) -> None:
    """Changes entries of the manifest, whose last one is the sha256 of the others."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256", None)
    manifest |= entries
    digest = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
    text = json.dumps({**manifest, "sha256": digest}, indent=1) + "\n"
    (folder / "manifest.json").write_text(text)


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


def test_index_of_another_training(copy):
    """The same vectors under another model's name: an index that must not be searched."""
    bundle = Bundle(copy)
    build.save(bundle.retriever("exact"), copy / "index" / "other", model_version="another")
    with pytest.raises(BundleError, match="another"):
        bundle.retriever("other")
    with pytest.raises(BundleError, match="build_index"):
        bundle.retriever("nope")


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


def test_vectors_that_are_not_finite_are_not_exported(training, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "item_vectors", lambda keys: np.full((len(keys), 8), np.nan))
    with pytest.raises(ValueError, match="diverged"):
        export(training, tmp_path / "bundle")


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


# What the manifest says.


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


@pytest.mark.parametrize("name", ["keys", "vectors", "sample_queries"])
def test_arrays_of_another_type(copy, name):
    path = copy / "items" / f"{name}.npy"
    np.save(path, np.load(path).astype(np.float64))
    files = json.loads((copy / "manifest.json").read_text())["files"]
    files[f"items/{name}.npy"] = hashlib.sha256(path.read_bytes()).hexdigest()
    described(copy, files=files)
    with pytest.raises(BundleError, match=rf"{name}\.npy: expected"):
        _ = Bundle(copy).sample_queries


def test_a_bundle_of_the_first_format(copy):
    """Its manifest carries no hash over itself, and its towers no version."""
    described(copy, format_version=1)
    with pytest.raises(BundleError, match=r"format 1 is older than this code reads \(2\)"):
        Bundle(copy)


@pytest.mark.parametrize("name", ["saved_model.cpb", "assets/more.txt"])
def test_a_file_that_is_not_listed_in_the_tower(copy, name):
    (copy / "query_tower" / name).write_bytes(b"")
    (copy / "notes.txt").write_text("whatever else is in a bundle is never read")
    with pytest.raises(BundleError, match=rf"{name} is no part of"):
        _ = Bundle(copy).query_tower


# Indexes in a bundle.


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


# Folders that are replaced.


def inputs() -> dict:
    return {"user_id": np.array(["u00001"]), "history": np.array([["i00003", "i00007"]])}


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
    """A copy of the same training is no other bundle."""
    bundle = Bundle(copy)
    put(exported, copy)
    assert bundle.query_tower(inputs()).shape == (1, 8) and len(bundle.sample_queries)


def test_a_tower_of_another_training(copy, other):
    """Its files taken from another bundle, and nobody compares hashes."""
    shutil.rmtree(copy / "query_tower")
    shutil.copytree(other / "query_tower", copy / "query_tower")
    with pytest.raises(BundleError, match=r"query_tower.* sha256 differs"):
        Bundle(copy)
    with pytest.raises(BundleError, match=r"query_tower is of model '\w+', not of '\w+'"):
        _ = Bundle(copy, verify=False).query_tower


def test_saved_towers_say_their_training(exported):
    """To whoever loads them without this package."""
    import tensorflow as tf

    version = json.loads((exported / "manifest.json").read_text())["model_version"]
    for name in ("query_tower", "item_tower"):
        model = tf.saved_model.load(str(exported / name))
        assert model.model_version.numpy().decode() == version


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


# Exports.


def test_interrupted_export_leaves_the_old_bundle(copy, training, monkeypatch):
    def broken(*args):
        raise KeyboardInterrupt

    before = (copy / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "save_retrieve", broken)
        with pytest.raises(KeyboardInterrupt):
            export(training, copy, {"refit": False})
    assert (copy / "manifest.json").read_bytes() == before
    Bundle(copy)
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]


def test_an_export_spares_what_is_not_a_bundle(training, copy):
    """Neither a folder of something else, nor a bundle into which somebody put a file."""
    (copy / "index" / "hnsw" / "notes.txt").write_text("shopping list")
    for folder in (copy, copy / "items"):
        with pytest.raises(ValueError, match="is not replaced"):
            export(training, folder)
    assert (copy / "index" / "hnsw" / "notes.txt").exists()
    (copy / "index" / "hnsw" / "notes.txt").unlink()
    Bundle(copy).retriever("hnsw")


def test_two_exports_into_one_folder(training, exported, copy, monkeypatch):
    """One begins and ends while the other is at work: the last to end stands there, whole."""
    newer = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"seed": 7}))
    real = exporting.save_retrieve
    monkeypatch.setattr(exporting.scann_index, "available", lambda: False)

    def meanwhile(*args):
        real(*args)
        monkeypatch.setattr(exporting, "save_retrieve", real)
        assert export(newer, copy).model_version != version

    version = Bundle(exported).model_version
    monkeypatch.setattr(exporting, "save_retrieve", meanwhile)
    assert export(training, copy, {}).model_version == version
    bundle = Bundle(copy)
    cases = training.split.cases.take(np.arange(5))
    found = bundle.query_tower(training.raw_query_inputs(cases))
    np.testing.assert_allclose(found, training.query_vectors(cases), atol=1e-5)
    assert bundle.indexes == [] and [path.name for path in copy.parent.iterdir()] == ["bundle"]


# Ends without warning, and many at once.


@pytest.fixture
def quick(training, monkeypatch):
    """`quick(version, folder)` exports in milliseconds and without TensorFlow, so that a fork of
    this process can do it: each part is a file that holds the version."""

    def stand_in(*args):
        folder = next(arg for arg in args if isinstance(arg, pathlib.Path))
        folder.mkdir()
        (folder / "version").write_text(quick.version)

    for name in ("save_tower", "save_retrieve", "save_weights"):
        monkeypatch.setattr(exporting, name, stand_in)
    monkeypatch.setattr(exporting.scann_index, "available", lambda: False)
    monkeypatch.setattr(exporting, "provenance", dict)
    monkeypatch.setattr(exporting, "model_version", lambda *_: quick.version)
    queries = np.ones((9, 8), np.float32)
    monkeypatch.setattr(exporting, "_sample_queries", lambda _: queries * int(quick.version, 16))
    monkeypatch.setattr(type(training.dataset), "fingerprint", lambda _: "")
    monkeypatch.setattr(training, "item_vectors", lambda keys: vectors_of(quick.version))

    def quick(version, folder):
        quick.version = version
        return export(training, folder)

    return quick


def vectors_of(version: str) -> np.ndarray:
    num = len(tiny.split().candidates)
    return np.full((num, 8), int(version, 16), np.float32)


def version_of(folder: pathlib.Path) -> str:
    """The version that each part of a bundle says, which is the same."""
    bundle = Bundle(folder)
    version = bundle.model_version
    for part in ("query_tower", "item_tower", "retrieve", "training"):
        assert (folder / part / "version").read_text() == version
    np.testing.assert_array_equal(bundle.vectors, vectors_of(version))
    assert bundle.sample_queries[0, 0] == int(version, 16) and len(bundle.catalogue)
    return version


def forked(work) -> int:
    """The process id of a fork that does `work()` and ends."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def killed(work, num: int, longest: float, check) -> list:
    """What `check()` says after each of `num` kills of processes that do `work()` again and again:
    the first two when they have done it once, the others at random, `longest` seconds at most."""
    found, rng = [], random.Random(0)
    for number in range(num):
        reading, writing = os.pipe()

        def repeat(writing=writing, is_once=number < 2):
            while True:
                work()
                if is_once:
                    os.write(writing, b"x")
                    time.sleep(600)

        child = forked(repeat)
        if number < 2:
            os.read(reading, 1)
        else:
            time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
        found.append(check())
    return found


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


NUM_KILLS = [6, pytest.param(60, marks=pytest.mark.slow)]


@pytest.mark.parametrize("num", NUM_KILLS)
def test_killed_in_an_export(num, quick, tmp_path):
    """The old bundle or the new one, whole; both are met, and nothing is left in the end."""
    folder = tmp_path / "b"
    quick("1", folder)

    def export_another():
        quick("2" if version_of(folder) == "1" else "1", folder)

    longest = 4 * timed(export_another)
    found = killed(export_another, num, longest, lambda: version_of(folder))
    assert len(found) == num and set(found) == {"1", "2"}, found
    quick("1", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("num", NUM_KILLS)
def test_killed_in_an_added_index(num, quick, tmp_path):
    folder = tmp_path / "b"
    bundle = quick("1", folder)
    add_index(bundle, "new", IndexConfig("exact"))

    def metric():
        assert version_of(folder) == "1"
        return Bundle(folder).retriever("new").metric

    def add_another():
        add_index(bundle, "new", IndexConfig("exact", "cosine" if metric() == "dot" else "dot"))

    found = killed(add_another, num, 4 * timed(add_another), metric)
    assert len(found) == num and set(found) == {"dot", "cosine"}, found
    add_index(bundle, "new", IndexConfig("exact"))
    assert [path.name for path in (folder / "index").iterdir()] == ["new"]


@pytest.mark.parametrize("num", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_pairs_of_exports_into_one_folder(num, quick, tmp_path):
    """Started at one moment; each comes to its end, and one of them stands there."""
    found = []
    for _ in range(num):
        reading, writing = os.pipe()

        def wait_and_export(version, reading=reading, writing=writing):
            os.close(writing)
            os.read(reading, 1)  # until the parent closes it
            quick(version, tmp_path / "b")

        pair = [forked(lambda v=version: wait_and_export(v)) for version in ("1", "2")]
        os.close(reading)
        os.close(writing)
        assert [os.waitpid(child, 0)[1] for child in pair] == [0, 0]
        found.append(version_of(tmp_path / "b"))
        assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert len(found) == num


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


REAL = """
import random, sys, time, os, signal
sys.path.insert(0, sys.argv[1])
import tiny
import numpy as np
from twotower.bundle import export as exporting
from twotower.bundle.bundle import Bundle
from twotower.training.trainer import Training
exporting.scann_index.available = lambda: False  # as other SavedModels, and slow

def exports(folder):
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe())
    while True:
        weight = training.model.query_tower.weights[-1]
        weight.assign_add(np.random.default_rng(os.getpid()).normal(size=weight.shape))
        yield exporting.export(training, folder).model_version
"""
REAL_KILLS = (
    REAL
    + """
folder, rng, found = sys.argv[2], random.Random(0), set()
for kill in range(int(sys.argv[3])):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for version in exports(folder):
            os.write(writing, b"x")
    started = [os.read(reading, 1) and time.perf_counter() for _ in range(2)]
    took = started[1] - started[0]
    time.sleep(rng.uniform(0, 2 * took))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading), os.close(writing)
    bundle = Bundle(folder)
    found.add(bundle.model_version)
    print(kill, bundle.model_version, flush=True)
child = os.fork()
if not child:
    assert Bundle(folder).query_tower.model
    next(exports(folder))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(len(found), os.listdir(os.path.dirname(folder)))
"""
)
REAL_PAIRS = (
    REAL
    + """
made = exports(sys.argv[2])
for line in sys.stdin:
    print(next(made), flush=True)
"""
)


@pytest.mark.slow
def test_killed_in_an_export_of_saved_models(tmp_path):
    command = [
        sys.executable,
        "-c",
        REAL_KILLS,
        str(tiny.ROOT / "tests"),
        str(tmp_path / "b"),
        "60",
    ]
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=env)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    *kills, last = run.stdout.splitlines()
    assert len(kills) == 60 and last.endswith(" ['b']") and int(last.split()[0]) > 30, last


@pytest.mark.slow
def test_pairs_of_exports_of_saved_models(tmp_path):
    command = [sys.executable, "-c", REAL_PAIRS, str(tiny.ROOT / "tests"), str(tmp_path / "b")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    pair = [subprocess.Popen(command, env=env, **pipes) for _ in range(2)]
    won = []
    for _ in range(20):
        for process in pair:
            process.stdin.write("\n")
            process.stdin.flush()
        versions = [process.stdout.readline().strip() for process in pair]
        bundle = Bundle(tmp_path / "b")
        won.append(versions.index(bundle.model_version))
        assert bundle.query_tower(inputs()).shape == (1, 8) and len(bundle.catalogue)
        assert [path.name for path in tmp_path.iterdir()] == ["b"]
    for process in pair:
        process.stdin.close()
        assert process.wait(60) == 0
    print(won)
