"""What the base class does around a backend: what it hands through, completes and leaves alone."""

import threading

import numpy as np
import pytest
from oracle import INF, rows_of
from small_indexes import AXES, KEYS, QUERY, make, ragged

from twotower.retrieval.backends.brute_force import BruteForceIndex
from twotower.retrieval.base import Retriever


class Spy(BruteForceIndex):
    """Keeps what `_search` got."""

    def _search(self, queries, k):
        self.seen, self.k = queries, k
        return super()._search(queries, k)


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_a_contiguous_float32_batch_is_not_copied(metric):
    spy = Spy(metric).build(np.array(KEYS), AXES)
    queries = np.repeat(QUERY, 3, 0)
    spy.search(queries, 4)
    assert np.shares_memory(spy.seen, queries)
    assert spy.k == 4
    for other in (queries.astype(np.float64), np.asfortranarray(queries)):
        spy.search(other, 1)
        assert spy.seen.dtype == np.float32 and spy.seen.flags.c_contiguous
        np.testing.assert_array_equal(spy.seen, queries)


def test_rows_with_long_exclusions_do_not_make_the_others_fetch_more():
    # 1000 items, k = 2. Two rows exclude nothing (fetch 2), one excludes 6 (fetch 8): two bands.
    spy = Spy().build(np.arange(1000), np.arange(1000, dtype=np.float32)[:, None])
    spy.is_exact, calls = False, []  # so that its search is asked, as an approximate one is
    real = spy._search
    spy._search = lambda queries, k: (calls.append((len(queries), k)), real(queries, k))[1]
    found = spy.search(np.ones((3, 1), np.float32), 2, exclude=ragged([[], range(994, 1000), []]))
    assert sorted(calls) == [(1, 8), (2, 2)]
    assert rows_of(found) == [[999, 998], [993, 992], [999, 998]]
    # With 99 excluded a scan of the 1000 is cheaper than 101 candidates: nobody asks the backend.
    calls.clear()
    found = spy.search(np.ones((1, 1), np.float32), 2, exclude=ragged([range(901, 1000)]))
    assert calls == [] and rows_of(found) == [[900, 899]]


def test_search_built_is_the_backend_alone():
    # Keys 20 and 40 are not reached and not completed; updates do not count.
    index = Forgetful().build(np.array(KEYS), AXES)
    index.remove(np.array([70]))
    assert rows_of(index.search_built(QUERY, 3)) == [[70, 90]]
    assert rows_of(index.search_built(QUERY, 3, exact=True)) == [[70, 20, 90]]


def test_a_search_sees_one_state_while_another_thread_writes():
    # Item 5 is always there, now built, now in the buffer: a search between "removed" and "added"
    # would miss it, one between keys and vectors would fail.
    index = make("exact", "dot", KEYS, AXES)
    index.add(np.array([5]), QUERY)
    stop, wrong = threading.Event(), []

    def search():
        while not stop.is_set():
            row = index.search(QUERY, 5).keys[0].tolist()
            if row[0] != 5:
                wrong.append(row)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        index.add(np.array([5, 6 + turn % 3]), np.concatenate([QUERY, AXES[:1]]))
        index.remove(np.array([6 + turn % 3]))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_searching_does_not_write_to_its_arguments(axes):
    queries, rows = np.repeat(QUERY, 2, 0), ragged([[70], []])
    axes.search(queries, 2, exclude=rows, allow=np.array(KEYS))
    assert (queries == QUERY).all()
    assert rows.values.tolist() == [70] and rows.offsets.tolist() == [0, 1, 1]


def test_vectors_stay_without_a_copy():
    index = make("exact", "dot", KEYS, AXES)
    vectors = AXES.copy()
    index.build(np.array(KEYS), vectors)
    assert np.shares_memory(index.state()["vectors"], vectors)


class Forgetful(Retriever):
    """A graph that reaches its even positions only."""

    def _build(self, vectors):
        pass

    def _search(self, queries, k):
        scores = queries @ self._vectors.T
        scores[:, 1::2] = -INF
        order = np.argsort(-scores, 1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, order, 1)
        return np.where(scores > -INF, order, -1), scores


def test_what_a_backend_does_not_reach_is_found():
    # Keys 70 and 90 are reached, 20 and 40 are not. With k = 2 the backend's answer is full, so it
    # stands; with k = 3 it is short and the exact one takes its place.
    index = Forgetful().build(np.array(KEYS), AXES)
    assert rows_of(index.search(QUERY, 2)) == [[70, 90]]
    assert rows_of(index.search(QUERY, 3)) == [[70, 20, 90]]
