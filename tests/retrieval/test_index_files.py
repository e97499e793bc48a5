"""Indexes on disk: there and back, and what the folder holds."""

import hashlib
import json

import numpy as np
import pytest
from backends import needs
from saved_indexes import DIM, NUM, files, two_axes

from twotower.ragged import Ragged
from twotower.retrieval import build


@pytest.fixture
def queries():
    return np.float32(np.random.default_rng(6).normal(size=(6, DIM)))


@pytest.fixture
def axes():
    return two_axes()


def same(index, other, queries):
    exclude = Ragged.from_rows([[4 + 3 * i, 10**10][: i % 3] for i in range(len(queries))])
    for k, no in ((5, None), (7, exclude), (NUM + 9, None)):
        left, right = index.search(queries, k, exclude=no), other.search(queries, k, exclude=no)
        np.testing.assert_array_equal(left.keys, right.keys)
        np.testing.assert_array_equal(left.scores, right.scores)
    assert index.keys.tolist() == other.keys.tolist()


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


def test_what_tuning_found_comes_back(axes, tmp_path):
    axes.tuned = {"ef_search": 40, "recall": 0.991}
    build.save(axes, tmp_path / "i")
    assert build.load(tmp_path / "i").tuned == {"ef_search": 40, "recall": 0.991}


def test_saving_what_was_never_built(axes, tmp_path):
    build.save(axes, tmp_path / "i")
    with pytest.raises(ValueError, match="the index is empty"):
        build.save(build.make(build.IndexConfig("exact")), tmp_path / "i")
    assert build.load(tmp_path / "i").keys.tolist() == [1, 3]


def test_a_folder_that_libraries_cannot_name(axes, tmp_path):
    """FAISS and ScaNN take text as UTF-8; refused before the work, for all backends alike."""
    folder = tmp_path / "caf\udce9" / "index"
    for call in (lambda: build.save(axes, folder), lambda: build.load(folder)):
        with pytest.raises(ValueError, match="is not valid UTF-8"):
            call()
    assert list(tmp_path.iterdir()) == []
