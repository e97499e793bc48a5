"""Two tiers: what goes where, what is found while it moves, what it costs."""

import threading

import numpy as np
import pytest
from clusters import clusters

pytest.importorskip("faiss")

from twotower.retrieval import build
from twotower.retrieval.backends.tiered import TieredConfig, TieredIndex
from twotower.retrieval.tuning import recall_against, tune

NUM = 4000


@pytest.fixture(scope="module")
def made():
    return clusters(NUM + 1500, 100, 16)


@pytest.fixture
def index(made):
    config = TieredConfig(num_lists=40, code_bytes=8, num_probes=20, fresh_buffer=200, threads=1)
    return TieredIndex("dot", config).build(np.arange(NUM), made[0][:NUM])


def graph_size(index):
    return index._fresh._index.ntotal


def test_fresh_items_go_to_the_graph_and_the_main_tier_stays(index, made):
    vectors, queries = made
    main = index._index.ntotal
    for first in range(NUM, NUM + 1500, 100):
        index.add(np.arange(first, first + 100), vectors[first : first + 100])
    # The first 100 are the first graph. Then each third 100 makes more than 200 in the buffer:
    # 100, 400, 700, 1000, 1300 in the graph, and the last 200 scanned.
    assert index._index.ntotal == main == NUM
    assert graph_size(index) == 1300 and len(index._fresh.state()["fresh_keys"]) == 200
    assert len(index) == NUM + 1500
    exact = build.build(build.IndexConfig("exact"), np.arange(NUM + 1500), vectors)
    assert recall_against(exact.search(queries, 50), index.search(queries, 50)) > 0.97
    assert index.needs_rebuild == f"1500 fresh items in front of {NUM}"  # more than a tenth
    index.absorb()
    assert index._fresh is None and index._index.ntotal == NUM + 1500
    assert recall_against(exact.search(queries, 50), index.search(queries, 50)) > 0.97
    assert index.needs_rebuild == ""


def test_an_item_is_in_one_tier(index, made):
    vectors, _ = made
    # Key 5 moves to where item 4000 lies, and back to its own place.
    for vector in (vectors[NUM : NUM + 1], vectors[5:6]):
        index.add(np.array([5]), vector)
        assert len(index) == NUM
        found = index.search(vector, 20).keys[0].tolist()
        assert found.count(5) == 1 and found[0] == 5
    index.remove(np.array([5]))
    assert len(index) == NUM - 1 and not index.knows(np.array([5])).any()
    assert 5 not in index.search(vectors[5:6], 20).keys
    with pytest.raises(ValueError, match=r"keys \[5\] are not in the index"):
        index.remove(np.array([5, 6]))
    assert index.knows(np.array([6])).all()


def test_a_search_never_misses_an_item_that_moves(index, made):
    # Items 0 to 99 move from the main tier to the fresh one and, built anew, stay findable: each
    # is the best answer to its own vector at any moment.
    vectors = made[0]
    queries = 2 * vectors[:100]
    stop, wrong, searches = threading.Event(), [], [0]

    def search():
        while not stop.is_set():
            keys = index.search(queries, 3).keys
            searches[0] += 1
            repeated = [row for row in keys.tolist() if len(set(row)) < 3]
            if repeated or (keys[:, 0] != np.arange(100)).any():
                wrong.append(keys)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        some = np.arange(turn % 10, 100, 10)
        index.add(some, vectors[some])
        new = np.arange(NUM + 20 * turn, NUM + 20 * turn + 20)
        index.add(new, -vectors[new])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and searches[0] > 5
    assert graph_size(index) > 200


def test_a_search_and_a_change_see_one_another_whole(index, made):
    vectors = made[0]
    index.add(np.array([NUM]), vectors[NUM : NUM + 1])
    search_store, grown, found = index._search_store, index._grown, []

    def changed_meanwhile(*args):
        main = search_store(*args)
        index._search_store = search_store
        index.add(np.array([7]), vectors[7:8])  # from this tier into the other
        return main

    index._search_store = changed_meanwhile
    found.append(index.search(vectors[7:8], 10))

    def searched_meanwhile(fresh):
        found.append(index.search(vectors[8:9], 10))
        return grown(fresh)

    index._grown = searched_meanwhile
    index.add(np.array([8]), vectors[8:9])
    found.append(index.search(vectors[8:9], 10))
    for answer, key in zip(found, (7, 8, 8), strict=True):
        assert (answer.keys == key).sum() == 1 and answer.keys[0, 0] == key


def test_parameters_arrive(made):
    config = TieredConfig(threads=1, refine=3)
    index = TieredIndex("dot", config).build(np.arange(50), made[0][:50])
    index.add(np.array([99]), made[0][99:100])
    assert index.config.refine == 3 and index._fresh.config.threads == 1
    with pytest.raises(ValueError, match="fresh_buffer must be"):
        TieredConfig(fresh_buffer=0)


def test_saved_with_both_tiers(index, made, tmp_path):
    vectors, queries = made
    index.add(np.arange(NUM, NUM + 300), vectors[NUM : NUM + 300])
    index.remove(np.array([3, NUM + 3]))
    build.save(index, tmp_path / "i")
    loaded = build.load(tmp_path / "i")
    np.testing.assert_array_equal(loaded.keys, index.keys)
    one, other = index.search(queries, 30), loaded.search(queries, 30)
    np.testing.assert_array_equal(one.keys, other.keys)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert loaded._fresh is not None and loaded.memory_bytes == index.memory_bytes
    # Without a fresh tier, too.
    build.save(index.absorb(), tmp_path / "i")
    assert build.load(tmp_path / "i")._fresh is None


def test_tuned_by_its_main_tier(index, made):
    chosen = tune(index, made[1], 20, 0.95)
    assert chosen["recall"] >= 0.95 and index.config.num_probes == chosen["num_probes"]


def test_memory_is_that_of_both(index, made):
    alone = index.memory_bytes
    index.add(np.arange(NUM, NUM + 100), made[0][NUM : NUM + 100])
    # 100 x 16 float32 here and in the graph, 64 links of 4 bytes, keys and the like.
    assert 2 * 6400 + 25_600 <= index.memory_bytes - alone <= 2 * 6400 + 25_600 + 8000
