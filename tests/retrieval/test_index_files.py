"""Indexes on disk: there and back, and what is refused."""

import hashlib
import json
import os
import shutil
import socket

import numpy as np
import pytest
from backends import needs

from twotower.ragged import Ragged
from twotower.retrieval import build

DIM, NUM = 8, 300


@pytest.fixture(scope="module", params=build.BACKENDS)
def changed(request):
    """An index of each backend with two items removed, one replaced and one added."""
    if request.param != "exact":
        needs(request.param)
    rng = np.random.default_rng(5)
    vectors = np.float32(rng.normal(size=(NUM + 2, DIM)))
    keys = rng.permutation(np.arange(NUM) * 3 + 4)
    index = build.build(build.IndexConfig(request.param), keys, vectors[:NUM])
    index.remove(keys[[0, 17]])
    index.add(np.array([keys[5], 10**10]), vectors[NUM:])
    return index


@pytest.fixture
def queries():
    return np.float32(np.random.default_rng(6).normal(size=(6, DIM)))


@pytest.fixture(scope="module")
def pristine(changed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "index"
    build.save(changed, folder, model_version="m1")
    return folder


@pytest.fixture
def saved(pristine, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "index")


@pytest.fixture
def axes():
    """An exact index of two axes, keys 3 and 1."""
    return build.build(build.IndexConfig("exact"), np.array([3, 1]), np.eye(2, dtype=np.float32))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(index, other, queries):
    exclude = Ragged.from_rows([[4 + 3 * i, 10**10][: i % 3] for i in range(len(queries))])
    for k, no in ((5, None), (7, exclude), (NUM + 9, None)):
        left, right = index.search(queries, k, exclude=no), other.search(queries, k, exclude=no)
        np.testing.assert_array_equal(left.keys, right.keys)
        np.testing.assert_array_equal(left.scores, right.scores)
    assert index.keys.tolist() == other.keys.tolist()


# There and back.


@pytest.mark.parametrize("mmap", [False, True])
def test_round_trip(changed, saved, queries, mmap):
    loaded = build.load(saved, model_version="m1", mmap=mmap)
    assert type(loaded) is type(changed) and loaded.metric == "dot"
    # 300 items less 2 removed, plus 1 new; the replaced one counts once.
    assert len(loaded) == len(changed) == 299
    assert getattr(loaded, "config", None) == getattr(changed, "config", None)
    same(changed, loaded, queries)
    # Changes go on: the buffer's and a built item go, and one of those removed comes back.
    back = int(changed.state()["keys"][0])
    gone = int(changed.state()["keys"][9])
    assert back not in loaded.keys
    loaded.remove(np.array([10**10, gone]))
    loaded.add(np.array([back]), 100 * queries[:1])  # by far the best for its own query
    assert loaded.search(queries[:1], 1).keys.tolist() == [[back]]
    assert len(loaded) == 298


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("backend", build.BACKENDS)
def test_round_trip_of_other_metrics(backend, metric, tmp_path, queries):
    if backend != "exact":
        needs(backend)
    vectors = np.float32(np.random.default_rng(7).normal(size=(40, DIM)))
    index = build.build(build.IndexConfig(backend, metric), np.arange(40) + 9, vectors)
    build.save(index, tmp_path / "i")
    loaded = build.load(tmp_path / "i")
    assert loaded.metric == metric
    same(index, loaded, queries)


def test_parameters_come_back(tmp_path):
    pytest.importorskip("faiss")
    config = build.IndexConfig("hnsw", "dot", {"neighbours": 6, "ef_search": 77})
    index = build.build(config, np.arange(4), np.eye(4, dtype=np.float32))
    build.save(index, tmp_path / "i")
    loaded = build.load(tmp_path / "i")
    assert (loaded.config.neighbours, loaded.config.ef_search) == (6, 77)


def test_description(axes, tmp_path):
    build.save(axes, tmp_path / "i", model_version="m7")
    described = json.loads((tmp_path / "i" / "index.json").read_text())
    assert {name: described[name] for name in ("backend", "metric", "dim", "num_items")} == {
        "backend": "exact",
        "metric": "dot",
        "dim": 2,
        "num_items": 2,
    }
    assert described["model_version"] == "m7" and described["format_version"] == 1
    content = (tmp_path / "i" / "keys.npy").read_bytes()
    assert described["files"]["keys.npy"] == hashlib.sha256(content).hexdigest()


def test_saving_replaces_what_was_there(changed, saved, axes):
    build.save(axes, saved)
    assert build.load(saved).keys.tolist() == [1, 3]
    # index.json and the five arrays of the state; nothing of the old index, no temporary folder.
    assert [path.name for path in files(saved)] == [
        "dead.npy",
        "fresh_keys.npy",
        "fresh_vectors.npy",
        "index.json",
        "keys.npy",
        "vectors.npy",
    ]
    assert [path.name for path in saved.parent.iterdir()] == ["index"]


def test_nothing_pickled(saved, monkeypatch):
    assert not [path for path in files(saved) if path.suffix in (".pkl", ".pickle")]
    allowed, real = [], np.load

    def load(*args, **kwargs):
        allowed.append(kwargs.get("allow_pickle", False))
        return real(*args, **kwargs)

    monkeypatch.setattr(np, "load", load)
    build.load(saved)
    assert (
        set(allowed) == {False} and len(allowed) >= 5
    )  # keys, vectors, dead, fresh_{keys,vectors}


def test_a_pickle_put_beside_is_not_read(saved):
    folder = saved / "scann" if (saved / "scann").is_dir() else saved
    (folder / "scann_docids.pkl").write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match=r"scann_docids\.pkl is no part of"):
        build.load(saved)


# Damage.


def refused(folder, name):
    with pytest.raises(ValueError) as caught:
        build.load(folder)
    assert str(folder / name) in str(caught.value)


def test_one_byte_of_any_file_changed(saved):
    for path in files(saved):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1} if content else ():
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            refused(saved, path.relative_to(saved))
        path.write_bytes(content)
    build.load(saved)  # all are whole again


def test_each_byte_of_the_description_changed(axes, tmp_path):
    build.save(axes, tmp_path / "i", model_version="m1")
    path = tmp_path / "i" / "index.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        refused(tmp_path / "i", "index.json")


def test_any_file_truncated_or_missing(saved):
    for path in files(saved):
        content = path.read_bytes()
        for length in {0, len(content) // 2, len(content) - 1} if content else ():
            path.write_bytes(content[:length])
            refused(saved, path.relative_to(saved))
        path.unlink()
        refused(saved, path.relative_to(saved))
        path.write_bytes(content)
    build.load(saved)


def test_newer_format(saved):
    described = json.loads((saved / "index.json").read_text())
    described["format_version"] = build.FORMAT_VERSION + 1
    (saved / "index.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"index\.json: format 2 is newer than this code reads"):
        build.load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"files": {}}',
        '{"format_version": 1, "files": {}}',
        '{"format_version": "one", "files": {}}',
        '{"format_version": null, "files": []}',
    ],
)
def test_description_of_something_else(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    refused(tmp_path, "index.json")


def test_foreign_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("shopping list")
    with pytest.raises(ValueError, match=r"index\.json does not exist, so .* holds no index"):
        build.load(tmp_path)
    with pytest.raises(ValueError, match="holds no index"):
        build.load(tmp_path / "no" / "folder")


def test_other_model(saved):
    with pytest.raises(ValueError, match=r"index\.json: .* model 'm1', not of 'm2'"):
        build.load(saved, model_version="m2")
    with pytest.raises(ValueError, match="not of ''"):
        build.load(saved, model_version="")
    assert len(build.load(saved)) == 299  # nobody asks


def test_other_dimension(saved):
    with pytest.raises(ValueError, match=r"index\.json: .*\[num_items, 8\]; expected .* 16\]"):
        build.load(saved, dim=16)
    assert len(build.load(saved, dim=8)) == 299


def test_what_tuning_found_comes_back(axes, tmp_path):
    axes.tuned = {"ef_search": 40, "recall": 0.991}
    build.save(axes, tmp_path / "i")
    assert build.load(tmp_path / "i").tuned == {"ef_search": 40, "recall": 0.991}


def test_arrays_of_another_shape(axes, tmp_path):
    # The plain files without their description: two keys for three vectors.
    axes.save(tmp_path)
    np.save(tmp_path / "vectors.npy", np.eye(3, 2, dtype=np.float32))
    with pytest.raises(ValueError, match=r"vectors\.npy: expected \[2, None\].*got \[3, 2\]"):
        build.make(build.IndexConfig("exact")).load(tmp_path)


def test_saving_what_was_never_built(axes, tmp_path):
    build.save(axes, tmp_path / "i")
    with pytest.raises(ValueError, match="the index is empty"):
        build.save(build.make(build.IndexConfig("exact")), tmp_path / "i")
    assert build.load(tmp_path / "i").keys.tolist() == [1, 3]


# What is read is what was described.


def described(folder, **entries) -> None:
    """Changes entries of index.json, whose last one is the sha256 of the others."""
    text = json.loads((folder / "index.json").read_text())
    del text["sha256"]
    text |= entries
    digest = hashlib.sha256(json.dumps(text, indent=1).encode()).hexdigest()
    text["sha256"] = digest
    (folder / "index.json").write_text(json.dumps(text, indent=1) + "\n")


def test_an_index_described_anew_loads(axes, tmp_path):
    """The helper above writes what `load` takes."""
    build.save(axes, tmp_path / "i")
    described(tmp_path / "i", model_version="m9")
    assert build.load(tmp_path / "i", model_version="m9").keys.tolist() == [1, 3]


STRAYS = ["hnsw_nodes.npy", "scann_positions.npy", "milvus.json"]


@pytest.mark.parametrize("name", STRAYS)
def test_a_file_that_is_not_listed(saved, name):
    """Left by a copy of another index over this one: a backend would read it."""
    if (saved / name).exists():  # a file of this very index
        name = f"another_{name}"
    (saved / name).write_bytes((saved / "keys.npy").read_bytes())
    with pytest.raises(ValueError) as caught:
        build.load(saved)
    assert str(saved / name) in str(caught.value) and "is no part of" in str(caught.value)


@pytest.mark.parametrize("link", [True, False])
def test_a_folder_that_is_not_listed(axes, tmp_path, link):
    build.save(axes, tmp_path / "i")
    build.save(axes, tmp_path / "other")
    if link:
        (tmp_path / "i" / "fresh").symlink_to(tmp_path / "other")
    else:
        shutil.copytree(tmp_path / "other", tmp_path / "i" / "fresh")
    with pytest.raises(ValueError, match=r"fresh.* is no part of"):
        build.load(tmp_path / "i")


def test_hidden_files_are_passed_over(axes, tmp_path):
    """What a Mac leaves on a disk."""
    build.save(axes, tmp_path / "i")
    for name in (".DS_Store", "._keys.npy"):
        (tmp_path / "i" / name).write_bytes(b"anything")
    assert build.load(tmp_path / "i").keys.tolist() == [1, 3]


def test_listed_files_may_be_links(axes, tmp_path):
    build.save(axes, tmp_path / "i")
    (tmp_path / "i" / "vectors.npy").rename(tmp_path / "v.npy")
    (tmp_path / "i" / "vectors.npy").symlink_to(tmp_path / "v.npy")
    assert build.load(tmp_path / "i").keys.tolist() == [1, 3]


@pytest.mark.parametrize(
    "entries",
    [
        {"files": {}},
        {"files": []},
        {"files": {"keys.npy": {"sha256": 3}}},
        {"files": {"keys.npy": "abc"}},
        {"files": {"../keys.npy": 64 * "0"}},
        {"files": {"/etc/passwd": 64 * "0"}},
        {"format_version": True},
        {"format_version": 0},
        {"format_version": 1.0},
        {"backend": 3},
        {"backend": "voyager"},
        {"metric": None},
        {"metric": "manhattan"},
        {"parameters": []},
        {"parameters": {"nothing": 3}},
        {"dim": "2"},
        {"dim": -2},
        {"num_items": None},
        {"num_items": 2.0},
        {"model_version": None},
        {"tuned": [1]},
    ],
)
def test_a_description_of_other_types(axes, tmp_path, entries):
    """With the right hash over itself."""
    build.save(axes, tmp_path / "i")
    described(tmp_path / "i", **entries)
    with pytest.raises(ValueError):
        build.load(tmp_path / "i")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\ud800"])
def test_a_description_that_no_parser_takes(tmp_path, text):
    (tmp_path / "index.json").write_text(text, errors="surrogatepass")
    refused(tmp_path, "index.json")


# A folder that is replaced, or changed, while it is read.


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


# An index that names a host.


@pytest.mark.parametrize("kind", ["server", "file"])
def test_an_index_dials_nobody_by_itself(axes, tmp_path, kind):
    build.save(axes, tmp_path / "i", "m1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        if kind == "file":
            uri = str(tmp_path / "made.db")
        parameters = {"uri": uri, "collection": "c", "timeout": 0.2}
        described(tmp_path / "i", backend="milvus", parameters=parameters)
        for allowed in ({}, {"allowed_uris": ["http://127.0.0.1:1"]}):
            with pytest.raises(ValueError, match="allowed_uris") as caught:
                build.load(tmp_path / "i", **allowed)
            assert uri in str(caught.value)
        with pytest.raises(TimeoutError):
            server.accept()
    assert not (tmp_path / "made.db").exists()
