"""FAISS indexes: recall, parameters, threads, size."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from backends import needs
from clusters import clusters

pytest.importorskip("faiss")

from twotower.retrieval import build, threads
from twotower.retrieval.backends.hnsw import HnswConfig, HnswIndex
from twotower.retrieval.backends.ivf import IvfConfig, IvfIndex
from twotower.retrieval.backends.ivf_pq import IvfPqConfig, IvfPqIndex
from twotower.retrieval.base import METRICS
from twotower.retrieval.tuning import recall_against, tune


@pytest.fixture(scope="module")
def index():
    vectors, _ = clusters(6000, 0)
    return HnswIndex("dot", HnswConfig(ef_construction=80)).build(np.arange(6000), vectors)


def test_recall_on_clustered_vectors(index):
    _, queries = clusters(6000, 200)
    exact = index.search_built(queries, 100, exact=True)
    assert recall_against(exact, index.search(queries, 100)) >= 0.99
    tuned = tune(index, queries[:100], 100, 0.99)
    assert tuned["recall"] >= 0.99 and index.tuned == tuned
    # Queries that it was not tuned on.
    found = index.search(queries[100:], 100)
    assert recall_against(exact.take(np.arange(100, 200)), found) >= 0.985


def test_a_filter_does_not_cost_recall(index):
    # 2% of the items, far from most queries: a graph walk would miss many (.77 at efSearch 64).
    _, queries = clusters(6000, 50)
    allow = np.arange(120) * 50
    scores = queries @ index.state()["vectors"][allow].T
    wanted = allow[np.argsort(-scores, axis=1)[:, :100]]
    found = index.search(queries, 100, allow=allow)
    assert found.counts.tolist() == [100] * 50
    assert [set(row) for row in found.keys] == [set(row) for row in wanted]


@pytest.mark.parametrize(
    ("storage", "scale", "num_appended"),
    [("float", 1, 200), ("sq8", 1, 900), ("float", 1e-25, 0), ("float", 1e17, 900)],
)
def test_vectors_of_different_length(storage, scale, num_appended):
    """The longest are answered to most queries, and yet the others must be found, as in a tower
    without normalisation, where lengths tell how popular an item is."""
    rng = np.random.default_rng(7)
    directions = rng.normal(size=(1200, 16)) + 1.5 * rng.normal(size=16)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = np.float32(scale * directions * np.exp(0.25 * rng.normal(size=(1200, 1))))
    vectors[77] = 0  # has no direction
    queries = np.float32(directions[::12] + 0.2 * rng.normal(size=(100, 16)))
    keys, first = np.arange(1200), 1200 - num_appended
    index = HnswIndex("dot", HnswConfig(storage=storage, ef_search=400, refine=2))
    index.build(keys[:first], vectors[:first])
    if num_appended:
        index.add(keys[first:], vectors[first:])
        index.absorb()
    found = index.search(queries, 20)
    scores = queries @ vectors.T
    best = np.argsort(-scores, axis=1)[:, :20]
    hits = sum(len(set(a) & set(b)) for a, b in zip(best, found.keys))
    assert hits >= 0.99 * best.size
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, found.keys, 1), rtol=1e-5)


def test_each_parameter_arrives():
    vectors, queries = clusters(500, 3, 16)
    config = HnswConfig(neighbours=7, ef_construction=33, ef_search=44, threads=1)
    index = HnswIndex("dot", config).build(np.arange(500), vectors)
    graph = index._index.hnsw
    # M = 7 links in an upper layer, 14 in the lowest.
    assert (graph.nb_neighbors(1), graph.nb_neighbors(0)) == (7, 14)
    assert graph.efConstruction == 33
    asked = []
    real = index._index.search

    def search(queries, k, params):
        asked.append(params.efSearch)
        return real(queries, k, params=params)

    index._index.search = search
    index.search(queries, 10)
    index.search(queries, 60)
    assert asked == [44, 60]  # never fewer than k


@pytest.mark.parametrize(
    "field, value", [("neighbours", 1), ("ef_construction", 0), ("ef_search", 0), ("threads", -1)]
)
def test_parameters_that_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .* or more; got {value}"):
        HnswConfig(**{field: value})


def test_threads_hold_in_every_calling_thread():
    # faiss.omp_set_num_threads is a setting of the thread that calls it: a new thread starts with
    # the machine's default, so the index has to set it at each search. In a process of its own.
    code = (
        "import threading, faiss, numpy as np\n"
        "from twotower.retrieval.backends.hnsw import HnswConfig, HnswIndex\n"
        "vectors = np.eye(8, dtype=np.float32)\n"
        "index = HnswIndex('dot', HnswConfig(threads=1)).build(np.arange(8), vectors)\n"
        "seen = []\n"
        "def run():\n"
        "    before = faiss.omp_get_max_threads()\n"
        "    index.search(vectors, 2)\n"
        "    seen.append((before, faiss.omp_get_max_threads()))\n"
        "for _ in range(2):\n"
        "    thread = threading.Thread(target=run); thread.start(); thread.join()\n"
        "print(seen)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[(2, 1), (2, 1)]"


@pytest.mark.parametrize("backend", ["flat", "hnsw", "ivf", "ivf_pq", "tiered", "scann"])
def test_threads_beyond_the_cores_are_not_started(backend):
    # 200,000 threads are more than a process may have: it ends where the first is refused.
    config = build.IndexConfig(needs(backend), "dot", {"threads": 200_000})
    vectors, queries = clusters(1200, 40, 8)
    index = build.build(config, np.arange(1200), vectors)
    before = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0
    assert index.search(queries, 3).counts.tolist() == [3] * 40
    if before:
        assert len(os.listdir("/proc/self/task")) <= before + 2 * os.cpu_count()
    assert threads.bounded(200_000) == threads.bounded(0) == os.cpu_count()
    assert threads.bounded(1) == threads.bounded(0, 1) == 1


@pytest.mark.parametrize("value", [True, 2.0, "2", None, float("nan")])
@pytest.mark.parametrize("backend", ["flat", "hnsw", "ivf", "ivf_pq", "tiered", "scann"])
def test_counts_are_integers(backend, value):
    with pytest.raises(ValueError, match=f"threads must be an integer; got {value!r}"):
        build.make(build.IndexConfig(needs(backend), "dot", {"threads": value}))


@pytest.mark.parametrize("metric", METRICS)
def test_memory_is_that_of_two_sets_of_vectors_and_the_graph(metric):
    vectors, _ = clusters(1000, 0, 16)
    index = HnswIndex(metric, HnswConfig(neighbours=8)).build(np.arange(1000), vectors)
    # 1000 x 16 float32 are 64,000 bytes, held here and by FAISS; the lowest layer has 16 links of
    # 4 bytes for each item, 64,000 as well; keys, offsets and levels take 8 + 8 + 4 bytes an item.
    assert 3 * 64_000 + 20_000 <= index.memory_bytes <= 3 * 64_000 + 40_000


@pytest.mark.parametrize("storage, width", [("fp16", 2), ("sq8", 1)])
def test_codes_take_less_and_scores_are_exact(storage, width):
    vectors, queries = clusters(5000, 50, 32)
    whole = HnswIndex("dot", HnswConfig(ef_construction=60)).build(np.arange(5000), vectors)
    config = HnswConfig(ef_construction=60, storage=storage, refine=2)
    index = HnswIndex("dot", config).build(np.arange(5000), vectors)
    # 32 dimensions of 4 bytes against 2 or 1; the graphs differ by a few links.
    saved = whole.backend_bytes - index.backend_bytes
    assert saved == pytest.approx(5000 * 32 * (4 - width), rel=0.02)
    exact = index.search_built(queries, 20, exact=True)
    found = index.search(queries, 20)
    assert recall_against(exact, found) > 0.97
    np.testing.assert_allclose(
        found.scores, np.einsum("qd,qkd->qk", queries, vectors[found.keys]), rtol=1e-5
    )


def test_unknown_storage():
    with pytest.raises(ValueError, match=r"storage must be one of \('float', 'fp16', 'sq8'\)"):
        HnswConfig(storage="int4")


def test_refine_finds_more_and_code_bytes_must_fit():
    vectors, queries = clusters(5000, 50, 32)
    config = IvfPqConfig(num_lists=20, num_probes=20, code_bytes=4, refine=1, threads=1)
    index = IvfPqIndex("dot", config).build(np.arange(5000), vectors)
    exact, recall = index.search_built(queries, 20, exact=True), {}
    for refine in (1, 4, 16):
        index.config = dataclasses.replace(config, refine=refine)
        recall[refine] = recall_against(exact, index.search(queries, 20))
    # All lists are looked into, so only the codes are to blame.
    assert recall[1] < recall[4] < recall[16] and recall[16] > 0.95
    # 4 bytes and an int64 an item; 20 centres and 256 parts of 32 float32.
    assert index.backend_bytes == 5000 * 12 + 20 * 128 + 256 * 128
    with pytest.raises(ValueError, match="code_bytes must divide the dimension, 32; got 5"):
        IvfPqIndex("dot", IvfPqConfig(code_bytes=5)).build(np.arange(5000), vectors)


def test_more_probes_find_more():
    vectors, queries = clusters(5000, 50, 32)
    index = IvfIndex("dot", IvfConfig(num_lists=50, threads=1)).build(np.arange(5000), vectors)
    assert index._index.nlist == 50
    exact, recall = index.search_built(queries, 20, exact=True), []
    for probes in (1, 8, 50):
        index.config = dataclasses.replace(index.config, num_probes=probes)
        recall.append(recall_against(exact, index.search_built(queries, 20)))
    assert recall[0] < recall[1] < recall[2] == 1  # all lists: every vector is scored
    with pytest.raises(ValueError, match="num_probes must be 1 or more; got 0"):
        IvfConfig(num_probes=0)
