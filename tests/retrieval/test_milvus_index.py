"""Milvus over a server on loopback and inside this process: the contract's main pieces, and
parameters."""

import threading

import numpy as np
import pytest
from clusters import clusters

from twotower.ragged import Ragged
from twotower.retrieval import build
from twotower.retrieval.tuning import recall_against, tune

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

import pymilvus
from milvus_server import AXES, KEYS, QUERY, axes, run, spied, where

from twotower.retrieval.backends import milvus_index
from twotower.retrieval.backends.milvus_index import MilvusConfig

# The contract's main pieces, over the server.


@pytest.mark.parametrize("metric", ["dot", "cosine", "euclidean"])
def test_over_a_server(shared, metric, tmp_path):
    vectors, queries = clusters(1000, 20, 16)
    vectors, keys = 3 * vectors, np.arange(1000) * 2 + 5
    config = build.IndexConfig("milvus", metric, {"uri": shared.uri, "collection": f"c_{metric}"})
    index, exact = (
        build.build(one, keys, vectors) for one in (config, build.IndexConfig("exact", metric))
    )
    index._store.built.best = None  # nothing comes from the scan of the base class
    assert recall_against(exact.search(queries, 10), index.search(queries, 10)) >= 0.99
    wanted, found = exact.search(queries, 10), index.search(queries, 10)
    same = found.keys == wanted.keys
    np.testing.assert_allclose(found.scores[same], wanted.scores[same], rtol=1e-4, atol=1e-5)
    del index._store.built.best
    for one in (index, exact):
        one.remove(keys[:300])
        one.add(np.array([7, 4, 6]), 3 * queries[:3])  # 7 replaces one
        if one is index:
            one.absorb()
    assert index.search_built(queries[:3], 1).keys[:, 0].tolist() == [7, 4, 6]
    found, wanted = index.search(queries, 10), exact.search(queries, 10)
    assert recall_against(wanted, found) >= 0.99 and (found.counts == 10).all()
    banned = Ragged.from_rows([[4, 6, 7]] * 20)
    allow = keys[::2]
    found = index.search(queries, 10, exclude=banned, allow=allow)
    assert recall_against(exact.search(queries, 10, exclude=banned, allow=allow), found) >= 0.99
    build.save(index, tmp_path / "i")
    loaded = build.load(tmp_path / "i", allowed_uris=[shared.uri])
    np.testing.assert_array_equal(loaded.search(queries, 10).keys, index.search(queries, 10).keys)
    assert loaded.backend_bytes == 0 and loaded.config == index.config


def test_the_backend_itself_forgets_and_learns(shared):
    index = axes(**where(shared))
    index.remove(np.array([70]))
    index.add(np.array([5]), 2 * AXES[1:2])
    assert index.search_built(QUERY, 4).keys.tolist() == [[70, 20, 90, 40]]
    index.absorb()
    # 5 scores 6, before 20 with 3; the tombstone has left the collection.
    assert index.search_built(QUERY, 5).keys.tolist() == [[5, 20, 90, 40, -1]]
    count = index._client.query(index._name, filter="", output_fields=["count(*)"])
    assert count[0]["count(*)"] == 4


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_many_batches(shared, monkeypatch, metric):
    vectors, queries = clusters(700, 9, 8)
    index, exact = (
        build.build(build.IndexConfig(*one), np.arange(700), vectors)
        for one in (("milvus", metric, where(shared)), ("exact", metric))
    )
    searches, inserts = spied(index, "search"), spied(index, "insert")
    monkeypatch.setattr(milvus_index, "MAX_QUERIES", 2)
    found = index.search(queries, 5)
    assert [len(args[1]) for args, _ in searches] == [2, 2, 2, 2, 1]
    assert found.keys.tolist() == exact.search(queries, 5).keys.tolist()
    # 96 bytes hold two vectors of 32 + 16 bytes.
    monkeypatch.setattr(milvus_index, "MAX_BYTES", 96)
    index.add(np.arange(700, 705), -vectors[:5])
    index.absorb()
    assert [len(args[1]) for args, _ in inserts] == [2, 2, 1]
    assert index.search_built(-vectors[:5], 1).keys[:, 0].tolist() == [700, 701, 702, 703, 704]


def test_lite_makes_no_large_array_of_differences():
    # 2,048 x 128 floats are 2^20 bytes, and 2^26 holds 64 of them; 70 queries are two calls.
    vectors, queries = clusters(2048, 70, 128)
    sizes = {}
    for metric in ("dot", "euclidean"):
        index = build.build(build.IndexConfig("milvus", metric), np.arange(2048), vectors)
        searches = spied(index, "search")
        index.search(queries, 1)
        sizes[metric] = [len(args[1]) for args, _ in searches]
    assert sizes == {"dot": [70], "euclidean": [64, 6]}


def test_k_over_the_limit_of_milvus(shared):
    vectors = np.float32(np.random.default_rng(0).normal(size=(16_500, 2)))
    index = build.build(
        build.IndexConfig("milvus", "euclidean", where(shared)), np.arange(16_500), vectors
    )
    searches = spied(index, "search")
    positions, scores = index._search(vectors[:1], 16_500)
    assert (positions[0, 16_384:] == -1).all() and positions[0, 0] == 0
    assert (scores[0, 16_384:] == -np.inf).all() and searches
    assert index.search(vectors[:1], 16_500).counts.tolist() == [16_500]
    assert {rest["limit"] for _, rest in searches} == {16_384}


def test_one_dimension(shared):
    # A Milvus server wants 2 or more, and its refusal is a ValueError; milvus-lite takes 1.
    index = build.build(
        build.IndexConfig("milvus", "dot", where(shared)),
        np.arange(3),
        np.float32([[1], [3], [2]]),
    )
    assert index.search(np.float32([[1]]), 3).keys.tolist() == [[1, 2, 0]]


def test_what_is_inserted_is_sealed():
    # An index covers sealed rows alone, and milvus-lite reads others ten times slower.
    index = axes()
    flushes = spied(index, "flush")
    index.build(KEYS, AXES)
    assert len(flushes) == 1
    index.add(np.array([3]), AXES[:1])
    index.absorb()
    assert len(flushes) == 2


# Parameters.


@pytest.mark.parametrize("metric, kind", [("dot", "IP"), ("euclidean", "L2")])
def test_parameters_arrive(shared, metric, kind):
    index = axes(metric, **where(shared, "p"), timeout=9.0)
    described = index._client.describe_index("p", "vector")
    assert (described["index_type"], described["metric_type"]) == ("AUTOINDEX", kind)
    assert index._client.describe_collection("p")["consistency_level_name"] == "Strong"
    searches = spied(index, "search")
    index.search(QUERY, 2)
    (((name, _), rest),) = searches
    assert name == "p" and rest["limit"] == 2
    assert rest["consistency_level"] == "Strong" and rest["timeout"] == 9.0
    assert rest["output_fields"] == ["position"]
    # milvus-lite in this process scans.
    index = axes(metric)
    assert index._client.describe_index(index._name, "vector")["index_type"] == "FLAT"


def test_there_is_nothing_to_tune():
    with pytest.raises(ValueError, match="MilvusIndex has no parameter of search effort"):
        tune(axes(), QUERY, 2)


REFUSED = {
    "path": ({"uri": "vectors", "collection": "c"}, "uri must be .*'vectors'"),
    "password": ({"uri": "http://root:Milvus@host:1", "collection": "c"}, "MILVUS_TOKEN"),
    "file alone": ({"uri": "v.db"}, "go together"),
    "name alone": ({"collection": "c"}, "go together"),
    "address alone": ({"uri": "http://host:1"}, "go together"),
    **{
        f"collection {name[:9]!r}": (
            {"uri": "http://host:1", "collection": name},
            "at most 255 letters, digits and _",
        )
        for name in (
            "my-films",
            "1films",
            "no/such/name",
            "f\xe9vrier",
            " films",
            "films\n",
            256 * "a",
        )
    },
    "timeout": ({"timeout": 0}, "timeout must be 0.1 or more; got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parameters_that_are_refused(case):
    parameters, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build.make(build.IndexConfig("milvus", "dot", parameters))


def test_the_token_is_sent_and_not_written(shared, monkeypatch, tmp_path):
    seen, real = [], pymilvus.MilvusClient

    def client(uri, token, **rest):
        seen.append(token)
        return real(uri, token=token, **rest)

    monkeypatch.setattr(pymilvus, "MilvusClient", client)
    monkeypatch.setenv("MILVUS_TOKEN", "root:s3cr3t")
    build.save(axes(uri=shared.uri, collection="t"), tmp_path / "i")
    assert build.load(tmp_path / "i", allowed_uris=[shared.uri]).search(QUERY, 1).keys.tolist() == [
        [70]
    ]
    assert seen == ["root:s3cr3t"] * 2
    written = [path for path in (tmp_path / "i").rglob("*") if path.is_file()]
    assert len(written) == 7 and not [p for p in written if b"s3cr3t" in p.read_bytes()]
    axes()
    assert seen[2:] == [""]  # nobody to show it to


def test_the_longest_names_are_taken():
    for name in ("_", "Films_2", 255 * "a"):
        MilvusConfig("http://host:1", name)


# Threads, memory, imports.


@pytest.mark.parametrize("place", ["embedded", "server"])
def test_several_threads_search(shared, place):
    vectors, queries = clusters(500, 40, 16)
    config = build.IndexConfig("milvus", "dot", where(shared) if place == "server" else {})
    index = build.build(config, np.arange(500), vectors)
    wanted = index.search(queries, 10).keys
    wrong, done = [], []

    def search(start):
        for row in range(start, 40, 4):
            found = index.search(queries[row : row + 1], 10).keys[0]
            if found.tolist() != wanted[row].tolist():
                wrong.append(row)
            done.append(row)

    threads = [threading.Thread(target=search, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    # Meanwhile another index is built and goes, and this one takes an item.
    axes(**(where(shared, "other") if place == "server" else {})).close()
    index.add(np.array([1000]), -vectors[:1])
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(40)) and not wrong


def test_memory_is_counted_where_it_is_ours(shared):
    vectors, _ = clusters(1000, 0, 64)
    index = build.build(build.IndexConfig("milvus"), np.arange(1000), vectors)
    # 8 copies of 4 x 64 bytes, and 100 bytes each.
    assert index.backend_bytes == 1000 * (8 * 4 * 64 + 100)
    assert axes(**where(shared)).backend_bytes == 0


def test_no_library_before_it_is_asked_for():
    done = run("import sys, twotower.retrieval.build; print('pymilvus' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("missing", ["pymilvus", "milvus_lite"])
def test_without_the_library(missing):
    code = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "from twotower.retrieval import build\nbuild.make(build.IndexConfig('milvus'))"
    )
    last = run(code).stderr.splitlines()[-1]
    assert "milvus" in last and last.startswith("ImportError") and "pip install" in last
