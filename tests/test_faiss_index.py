"""FAISS HNSW: recall, parameters, threads, size."""

import os
import subprocess
import sys

import numpy as np
import pytest
from clusters import clusters

pytest.importorskip("faiss")

from twotower.retrieval.base import METRICS
from twotower.retrieval.hnsw import HnswConfig, HnswIndex
from twotower.retrieval.tuning import recall_against, tune


@pytest.fixture(scope="module")
def index():
    vectors, _ = clusters(20_000, 0)
    return HnswIndex("dot", HnswConfig(ef_construction=80)).build(np.arange(20_000), vectors)


def test_recall_on_20k_clustered_vectors(index):
    _, queries = clusters(20_000, 200)
    exact = index.search_built(queries, 100, exact=True)
    assert recall_against(exact, index.search(queries, 100)) >= 0.99
    tuned = tune(index, queries[:100], 100, 0.99)
    assert tuned["recall"] >= 0.99 and index.tuned == tuned
    # Queries that it was not tuned on.
    found = index.search(queries[100:], 100)
    assert recall_against(exact.take(np.arange(100, 200)), found) >= 0.985


def test_a_filter_does_not_cost_recall(index):
    # 2% of the items, far from most queries: a graph walk would miss many (.77 at efSearch 64).
    _, queries = clusters(20_000, 50)
    allow = np.arange(400) * 50
    scores = queries @ index.state()["vectors"][allow].T
    wanted = allow[np.argsort(-scores, axis=1)[:, :100]]
    found = index.search(queries, 100, allow=allow)
    assert found.counts.tolist() == [100] * 50
    assert [set(row) for row in found.keys] == [set(row) for row in wanted]


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
        "from twotower.retrieval.hnsw import HnswConfig, HnswIndex\n"
        "vectors = np.eye(8, dtype=np.float32)\n"
        "index = HnswIndex('dot', HnswConfig(threads=3)).build(np.arange(8), vectors)\n"
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
    assert done.stdout.strip() == "[(2, 3), (2, 3)]"


@pytest.mark.parametrize("metric", METRICS)
def test_memory_is_that_of_two_sets_of_vectors_and_the_graph(metric):
    vectors, _ = clusters(1000, 0, 16)
    index = HnswIndex(metric, HnswConfig(neighbours=8)).build(np.arange(1000), vectors)
    # 1000 x 16 float32 are 64,000 bytes, held here and by FAISS; the lowest layer has 16 links of
    # 4 bytes for each item, 64,000 as well; keys, offsets and levels take 8 + 8 + 4 bytes an item.
    assert 3 * 64_000 + 20_000 <= index.memory_bytes <= 3 * 64_000 + 40_000
