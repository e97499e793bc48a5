"""One contract for all indexes, against brute force in numpy.

What depends on distances is tried with every backend under every metric. What the base class
settles is tried with each backend once, under the metrics in turn.
"""

import copy
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from backends import needs
from oracle import INF, oracle, oracle_scores, rows_of

from twotower.ragged import Ragged
from twotower.retrieval import build, store
from twotower.retrieval.backends.brute_force import BruteForceIndex
from twotower.retrieval.base import METRICS, Retriever


@pytest.fixture(params=build.BACKENDS)
def backend(request):
    return needs(request.param)


@pytest.fixture(params=METRICS)
def metric(request):
    return request.param


PAIRS = [(backend, METRICS[turn % 3]) for turn, backend in enumerate(build.BACKENDS)]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    """Each backend once, and a metric."""
    needs(request.param[0])
    return request.param


def make(backend, metric="dot", keys=(), vectors=()):
    return build.build(build.IndexConfig(backend, metric), np.asarray(keys), np.float32(vectors))


def ragged(rows):
    return Ragged.from_rows(rows)


# Four unit axes. The query (4, 3, 2, 1) scores them 4 > 3 > 2 > 1 by dot product and, all being of
# length 1, in the same order by cosine and by distance. Keys are not 0..3 and not in order.
AXES = np.eye(4, dtype=np.float32)
KEYS = [70, 20, 90, 40]
QUERY = np.float32([[4, 3, 2, 1]])
# The score of the axis of value v: v; v / |q| = v / sqrt(30); -(|q|^2 + 1 - 2 v) = 2 v - 31.
AXIS_SCORES = {
    "dot": [4, 3, 2, 1],
    "cosine": [0.7302967, 0.5477226, 0.3651484, 0.1825742],
    "euclidean": [-23, -25, -27, -29],
}


@pytest.fixture
def axes(pair):
    return make(*pair, KEYS, AXES)


# Planted answers.


def test_axes(backend, metric):
    axes = make(backend, metric, KEYS, AXES)
    # The second query is the first backwards, so its answer is, too.
    found = axes.search(np.concatenate([QUERY, QUERY[:, ::-1]]), 4)
    assert rows_of(found) == [[70, 20, 90, 40], [40, 90, 20, 70]]
    np.testing.assert_allclose(found.scores, [AXIS_SCORES[metric]] * 2, rtol=1e-5)
    assert found.counts.tolist() == [4, 4]
    assert len(axes) == 4 and axes.dim == 4 and axes.keys.tolist() == [20, 40, 70, 90]
    assert axes.memory_bytes >= AXES.nbytes


def test_single_query_is_as_in_a_batch(axes):
    both = axes.search(np.concatenate([QUERY, QUERY[:, ::-1]]), 2)
    assert rows_of(axes.search(QUERY, 2)) == rows_of(both)[:1] == [[70, 20]]


def test_checkerboard(backend, metric):
    # The white fields of an 8 x 8 board: 32 items, field (r, c) with r + c even, key 100 r + c,
    # at the point (r + 1, c + 1, z) with z such that all vectors are of length 20: nearest by one
    # metric is nearest by all.
    cells = [(r, c) for r in range(8) for c in range(8) if (r + c) % 2 == 0]
    points = np.float64(cells) + 1
    lifted = np.float32(np.column_stack([points, np.sqrt(400 - (points**2).sum(1))]))
    index = make(backend, metric, [100 * r + c for r, c in cells], lifted)
    assert len(index) == 32
    # Each field's own point finds the field first. From (0, 0) the next is (1, 1), its one diagonal
    # neighbour: squared distances are 2.02 to that, and 4.04 to (0, 2) and (2, 0).
    found = index.search(lifted, 2)
    assert found.keys[:, 0].tolist() == [100 * r + c for r, c in cells]
    assert found.keys[0].tolist() == [0, 101]


# Random clustered data against brute force.

NUM, DIM = 1200, 16


@pytest.fixture(scope="module")
def clustered():
    """1200 items of 40 clusters, keys 5, 12, 19, ... shuffled; 24 queries of the same clusters."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(40, DIM))
    vectors = np.float32(centres[rng.integers(0, 40, NUM)] + 0.4 * rng.normal(size=(NUM, DIM)))
    queries = np.float32(centres[rng.integers(0, 40, 24)] + 0.4 * rng.normal(size=(24, DIM)))
    return rng.permutation(np.arange(NUM) * 7 + 5), vectors, queries


_BUILT = {}


def built(backend, metric, clustered):
    """Built once a backend and metric; tests that change it build their own."""
    if (backend, metric) not in _BUILT:
        _BUILT[backend, metric] = make(backend, metric, *clustered[:2])
    return _BUILT[backend, metric]


@pytest.fixture
def big(pair, clustered):
    return built(*pair, clustered)


def agrees(found, wanted, exact):
    """Exact answers are equal to the oracle's; the others hold .9 of it and as many items."""
    found = rows_of(found)
    assert [len(row) for row in found] == [len(row) for row in wanted]
    if exact:
        assert found == wanted
    hits = sum(len(set(a) & set(b)) for a, b in zip(found, wanted))
    assert hits >= 0.9 * sum(map(len, wanted)) > 0


def test_clustered(backend, metric, clustered):
    keys, vectors, queries = clustered
    big = built(backend, metric, clustered)
    found = big.search(queries, 20)
    agrees(found, oracle(metric, queries, keys, vectors, 20), big.is_exact)
    # Scores are those of the items they stand beside.
    true = oracle_scores(metric, queries, vectors)
    column = np.argsort(keys)[np.searchsorted(np.sort(keys), found.keys)]
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(true, column, 1), rtol=1e-4, atol=1e-4
    )


def test_clustered_with_exclusions_of_different_length(big, clustered):
    metric, (keys, vectors, queries) = big.metric, clustered
    # Row i is without its own best i items, and with a key that nobody knows.
    best = oracle(metric, queries, keys, vectors, len(queries))
    banned = [[*row[:i], 10**9 + i] if i else [] for i, row in enumerate(best)]
    found = big.search(queries, 10, exclude=ragged(banned))
    agrees(found, oracle(metric, queries, keys, vectors, 10, banned), big.is_exact)
    assert not any(set(row) & set(no) for row, no in zip(rows_of(found), banned))


@pytest.mark.parametrize("share", [0.003, 0.1, 0.7], ids=["narrow", "middle", "wide"])
def test_clustered_with_allow(big, clustered, share):
    metric, (keys, vectors, queries) = big.metric, clustered
    allow = np.concatenate([keys[: int(share * NUM)], [1, 10**12, -4]])  # three unknown keys
    best = oracle(metric, queries, keys, vectors, 3, allow=allow)
    agrees(big.search(queries, 3, allow=allow), best, big.is_exact)
    # The same without each row's best two.
    banned = [row[: 1 + i % 2] for i, row in enumerate(best)]
    found = big.search(queries, 5, exclude=ragged(banned), allow=allow)
    wanted = oracle(metric, queries, keys, vectors, 5, banned, allow)
    agrees(found, wanted, big.is_exact)
    assert np.isin(found.keys[found.valid], allow).all()


def test_k_of_the_whole_catalogue_is_full(big, clustered):
    # A graph or a partition does not reach everything by itself; nothing may be missing though.
    keys, _, queries = clustered
    found = big.search(queries[:3], NUM + 2)
    assert [sorted(row) for row in rows_of(found)] == [sorted(keys.tolist())] * 3
    assert found.keys.shape == (3, NUM)


def test_filters_that_lie_where_the_query_looks(backend):
    # 2400 items at (i / 2400, 1), key 2 i + 1, of which the first 600 are allowed: too many for a
    # scan at once. The queries (1, 0) want the largest i, all of which are forbidden far beyond
    # what is fetched, so these rows fall short and are scanned: from i = 599 (key 1199) downwards.
    # The query (-1, 0) in the middle wants the smallest i, all of which are allowed.
    place = np.arange(2400)
    vectors = np.column_stack([place / 2400, np.ones(2400)])
    index = make(backend, "dot", 2 * place + 1, vectors)
    queries = np.float32([[1, 0], [-1, 0], [1, 0]])
    banned = ragged([[], [1, 5], [1199, 1195, 7]])
    found = index.search(queries, 3, exclude=banned, allow=2 * place[:600] + 1)
    rows = rows_of(found)
    assert rows[0] == [1199, 1197, 1195]
    assert rows[2] == [1197, 1193, 1191]
    assert len(rows[1]) == 3 and not {1, 5} & set(rows[1]) and max(rows[1]) < 1200
    if index.is_exact:
        assert rows[1] == [3, 7, 9]


# Edge rows, worked on the axes.


def test_k_beyond_the_catalogue(axes):
    # As wide as there are items, whatever was asked for: a place takes 12 bytes, each row.
    for k in (6, 2**31 - 1, 2**63, np.uint64(2**64 - 1)):
        found = axes.search(QUERY, k)
        assert found.keys.tolist() == [[70, 20, 90, 40]] and found.counts.tolist() == [4]
        np.testing.assert_allclose(found.scores, [AXIS_SCORES[axes.metric]], rtol=1e-5)
    assert axes.search_built(QUERY, k).keys.shape == (1, 4)
    banned, allow = ragged([[20], [70, 90]]), np.array([70, 20, 40])
    found = axes.search(np.repeat(QUERY, 2, 0), k, exclude=banned, allow=allow)
    assert found.keys.tolist() == [[70, 40, -1, -1], [20, 40, -1, -1]]
    assert found.scores[0, 2:].tolist() == [-INF, -INF] and found.counts.tolist() == [2, 2]
    # Of five built or added two are gone: three are left.
    axes.add(np.array([5]), QUERY)
    axes.remove(np.array([20, 70]))
    assert axes.search(QUERY, k).keys.tolist() == [[5, 90, 40]]


def test_everything_excluded(axes):
    found = axes.search(QUERY, 2, exclude=ragged([KEYS]))
    assert found.keys.tolist() == [[-1, -1]]
    assert found.scores.tolist() == [[-INF, -INF]]
    assert found.counts.tolist() == [0]


def test_two_of_four_excluded(axes):
    # 70 and 90 are out, so exactly 20 and 40 are left for three places.
    found = axes.search(QUERY, 3, exclude=ragged([[90, 70]]))
    assert found.keys.tolist() == [[20, 40, -1]]
    assert found.counts.tolist() == [2]


def test_exclusions_are_each_rows_own(axes):
    # The same query four times: without nothing; an unknown key and a negative one; a key that
    # stands twice; all but one.
    rows = [[], [999, -1], [70, 70], [20, 70, 90]]
    found = axes.search(np.repeat(QUERY, 4, 0), 2, exclude=ragged(rows))
    assert rows_of(found) == [[70, 20], [70, 20], [20, 90], [40]]


def test_all_exclusion_rows_empty(axes):
    assert rows_of(axes.search(QUERY, 2, exclude=Ragged.empty(1))) == [[70, 20]]


def test_allow(axes):
    for allow, exclude, keys in [
        ([90], [], [90]),
        ([40, 90, 20, 70], [], [70, 20, 90]),
        ([40, 5, 90, -1], [], [90, 40]),  # two unknown ones
        ([40, 90, 20], [20, 70], [90, 40]),
        ([40], [40], []),
        ([1, 2, 3], [], []),
        ([], [], []),
    ]:
        found = axes.search(QUERY, 3, exclude=ragged([exclude]), allow=np.array(allow, np.int64))
        assert rows_of(found) == [keys]
        assert found.keys.shape == (1, 3)


def test_ties_stand_in_ascending_order_of_keys(pair):
    # Three times the first axis under keys 8, 3, 5; the second axis is key 4. All three metrics
    # give the first axis the highest score for a query close to it.
    index = make(*pair, [8, 3, 4, 5], AXES[[0, 0, 1, 0]])
    found = index.search(QUERY, 4)
    assert rows_of(found) == [[3, 5, 8, 4]]
    assert len(set(found.scores[0, :3].tolist())) == 1
    # The same with a buffer: key 1 is the same vector again.
    index.add(np.array([1]), AXES[:1])
    assert rows_of(index.search(QUERY, 5)) == [[1, 3, 5, 8, 4]]


def test_empty_query_batch(axes):
    for exclude in (None, Ragged.empty(0)):
        found = axes.search(np.empty((0, 4), np.float32), 3, exclude=exclude)
        assert found.keys.shape == found.scores.shape == (0, 3)
        assert found.counts.shape == (0,)
    axes.remove(np.array([70]))
    assert len(axes.search(np.empty((0, 4), np.float32), 3, allow=np.array([20]))) == 0


def test_one_item(pair):
    index = make(*pair, [6], AXES[:1])
    assert index.search(QUERY, 2).keys.tolist() == [[6]]


def test_keys_beyond_32_bits(backend):
    # 2^62 times a row number runs over int64, so nothing may put both into one number. The second
    # round has the last two in the buffer.
    keys = [2**62, 2**62 + 1, 2**63 - 1, 3]
    index = make(backend, "dot", keys, AXES)
    rows = [[keys[0]], [], [keys[1], keys[2]], [-1], [keys[2]]]
    # Scores are 4, 3, 2, 1 in order of `keys`: the first two of those that are left.
    wanted = [[keys[1], keys[2]], keys[:2], [keys[0], 3], keys[:2], keys[:2]]
    for _ in range(2):
        found = index.search(np.repeat(QUERY, 5, 0), 2, exclude=ragged(rows))
        assert rows_of(found) == wanted
        index.add(np.array(keys[2:]), AXES[2:])


# Changes.


def test_remove_then_search(axes):
    axes.remove(np.array([70]))
    assert rows_of(axes.search(QUERY, 4)) == [[20, 90, 40]]
    assert len(axes) == 3 and axes.keys.tolist() == [20, 40, 90]


def test_remove_everything(axes):
    axes.remove(np.array(KEYS))
    found = axes.search(QUERY, 2)
    assert found.keys.tolist() == [[-1]] and found.counts.tolist() == [0]
    assert len(axes) == 0


def test_upsert_is_seen_by_the_next_search(axes):
    # 40 moves from the last axis to the direction of the query: now it is the best under cosine
    # (1), dot (30) and distance (0).
    axes.add(np.array([40]), QUERY)
    assert rows_of(axes.search(QUERY, 4)) == [[40, 70, 20, 90]]
    # Back again, and the old vectors are gone.
    axes.add(np.array([40]), AXES[3:])
    assert rows_of(axes.search(QUERY, 4)) == [[70, 20, 90, 40]]
    assert len(axes) == 4


def test_new_item_and_its_exclusion(axes):
    axes.add(np.array([7]), QUERY)
    found = axes.search(np.repeat(QUERY, 3, 0), 2, exclude=ragged([[], [7], [70]]))
    assert rows_of(found) == [[7, 70], [70, 20], [7, 20]]
    assert rows_of(axes.search(QUERY, 2, allow=np.array([7, 40]))) == [[7, 40]]
    assert len(axes) == 5 and axes.keys.tolist() == [7, 20, 40, 70, 90]


def test_unknown_exclusions_leave_the_buffer_alone(axes):
    # -1 of one row is not the largest key of the row before it.
    axes.add(np.array([99]), QUERY)
    found = axes.search(np.repeat(QUERY, 2, 0), 1, exclude=ragged([[], [-1]]))
    assert rows_of(found) == [[99], [99]]


def test_add_after_remove(axes):
    axes.remove(np.array([20, 70]))
    axes.add(np.array([20]), AXES[3:])  # now the same vector as 40: they tie, 20 comes first
    assert rows_of(axes.search(QUERY, 4)) == [[90, 20, 40]]
    axes.remove(np.array([20]))  # from the buffer this time
    assert rows_of(axes.search(QUERY, 4)) == [[90, 40]]


def test_removing_an_unknown_key_changes_nothing(axes):
    for keys in ([20, 21], [21], [-1]):
        with pytest.raises(ValueError, match=rf"keys \[{keys[-1]}\] are not in the index"):
            axes.remove(np.array(keys))
    assert rows_of(axes.search(QUERY, 4)) == [[70, 20, 90, 40]]


def test_removed_twice(axes):
    axes.remove(np.array([20]))
    with pytest.raises(ValueError, match="not in the index"):
        axes.remove(np.array([20]))
    assert len(axes) == 3


def test_add_and_remove_of_nothing(axes):
    axes.add(np.empty(0, np.int64), np.empty((0, 4), np.float32))
    axes.remove(np.empty(0, np.int64))
    assert rows_of(axes.search(QUERY, 4)) == [[70, 20, 90, 40]]


def test_build_anew_forgets(axes):
    axes.add(np.array([7]), QUERY)
    axes.remove(np.array([20]))
    axes.build(np.array([1, 2]), AXES[:2])
    assert rows_of(axes.search(QUERY, 4)) == [[1, 2]]


# Absorbing the buffer.


def changed_clustered(index, clustered):
    """Removes 180 of the items, replaces 120 by others' mirror images, adds 100 more; the keys and
    vectors that are live then."""
    keys, vectors, _ = clustered
    gone, moved, new = keys[:180], keys[180:300], np.arange(100) + 10**6
    index.remove(gone)
    index.add(moved, -vectors[180:300])
    index.add(new, vectors[:100] + np.float32(0.01))
    return (
        np.concatenate([keys[300:], moved, new]),
        np.concatenate([vectors[300:], -vectors[180:300], vectors[:100] + np.float32(0.01)]),
    )


def test_absorb(pair, clustered):
    index, metric = make(*pair, *clustered[:2]), pair[1]
    keys, vectors = changed_clustered(index, clustered)
    queries = np.concatenate([clustered[2], -clustered[2]])
    assert index.absorb() is index
    assert index.keys.tolist() == sorted(keys.tolist()) and len(index) == len(keys)
    assert len(index.state()["fresh_keys"]) == 0
    agrees(index.search(queries, 20), oracle(metric, queries, keys, vectors, 20), index.is_exact)
    # Where the backend has forgotten what was removed, a search need not look for it any more.
    assert index._store.is_changed == (not index.can_forget and not index.is_exact)
    # The backend itself has them: not a scan of the buffer.
    found, wanted = index.search_built(queries, 20), oracle(metric, queries, keys, vectors, 20)
    alive = [[key for key in row if key >= 0] for row in found.keys.tolist()]
    hits = sum(len(set(a) & set(b)) for a, b in zip(alive, wanted))
    assert hits >= 0.75 * 20 * len(queries)  # HNSW's answers hold removed ones, which drop out
    # What stood in the store goes on as before: changes upon changes, a filter, exclusions.
    index.remove(keys[-50:])
    index.add(keys[-60:-50], -vectors[-60:-50])
    index.absorb()
    keys, vectors = keys[:-50], np.concatenate([vectors[:-60], -vectors[-60:-50]])
    best = oracle(metric, queries, keys, vectors, 10)
    allow = keys[::3]
    banned = [row[:2] for row in best]
    found = index.search(queries, 10, exclude=ragged(banned), allow=allow)
    wanted = oracle(metric, queries, keys, vectors, 10, banned, allow)
    agrees(found, wanted, index.is_exact)


def test_absorbed_comes_back_from_disk(backend, clustered, tmp_path):
    index = make(backend, "dot", *clustered[:2])
    keys, _ = changed_clustered(index, clustered)
    index.absorb()
    build.save(index, tmp_path / "i")
    loaded = build.load(tmp_path / "i")
    assert loaded.keys.tolist() == sorted(keys.tolist())
    assert loaded._store.is_changed == index._store.is_changed
    one, other = index.search(clustered[2], 20), loaded.search(clustered[2], 20)
    np.testing.assert_array_equal(one.keys, other.keys)
    loaded.remove(keys[:5])
    loaded.add(np.array([5_000_000]), clustered[2][:1] * 9)
    loaded.absorb()
    assert loaded.search(clustered[2][:1], 1).keys.tolist() == [[5_000_000]]
    assert len(loaded) == len(keys) - 4


def test_absorb_of_axes(axes):
    # 20 goes, 40 moves to the query itself, 5 comes beside 70: all twice over, then everything.
    for _ in range(2):
        axes.remove(np.array([20]))
        axes.add(np.array([40, 5]), np.concatenate([QUERY, 0.5 * AXES[:1]]))
        axes.absorb()
        assert len(axes) == 4
        assert set(rows_of(axes.search(QUERY, 9))[0]) == {40, 70, 5, 90}
        assert rows_of(axes.search(QUERY, 1)) == [[40]]
        axes.add(np.array([20]), AXES[1:2])
    axes.remove(axes.keys)
    axes.absorb()
    assert rows_of(axes.search(QUERY, 3)) == [[]] and len(axes) == 0
    axes.add(np.array([3]), AXES[:1])
    axes.absorb()
    assert rows_of(axes.search(QUERY, 3)) == [[3]]


def test_when_to_rebuild():
    # The limits by hand: 10,000 vectors in the buffer, a fifth of tombstones, 1.5 times the items.
    vectors = np.float32(np.random.default_rng(0).normal(size=(12_000, 2)))
    index = BruteForceIndex().build(np.arange(100), vectors[:100])
    index.remove(np.arange(20))
    assert index.needs_rebuild == ""
    index.remove(np.array([20]))
    assert index.needs_rebuild == "21 of 100 vectors are tombstones"
    index.build(*index.live())
    assert index.needs_rebuild == "" and len(index) == 79
    index.add(np.arange(10_000) + 1000, vectors[:10_000])
    assert index.needs_rebuild == ""
    with pytest.warns(UserWarning, match="10001 vectors in the buffer, of 10000 at most"):
        index.add(np.array([7]), vectors[:1])
    assert index.needs_rebuild.startswith("10001 vectors in the buffer, of 10000 at most: ")
    assert index.absorb().needs_rebuild == ""


def test_a_buffer_that_is_too_long_warns_once(monkeypatch):
    # Each add copies the whole buffer: without an end the next one takes longer than the last.
    monkeypatch.setattr(store, "MAX_BUFFER", 3)
    index = BruteForceIndex().build(np.array(KEYS), AXES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(np.arange(3), AXES[:3])
    with pytest.warns(UserWarning, match="BruteForceIndex: 4 vectors in the buffer.*until absorb"):
        index.add(np.arange(2, 4), AXES[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(np.array([4]), AXES[:1])
        index.absorb().add(np.array([5]), AXES[:1])
    assert index.needs_rebuild == ""


def test_a_catalogue_that_outgrows_its_tuning_warns_once():
    vectors = np.float32(np.random.default_rng(0).normal(size=(40, 2)))
    index = BruteForceIndex().build(np.arange(20), vectors[:20])
    index.tuned = {"num_items": 20}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(np.arange(20, 29), vectors[20:29])
    with pytest.warns(UserWarning, match="was tuned for 20 items and now holds 30.*tune again"):
        index.add(np.array([29]), vectors[29:30])
    assert "was tuned for 20" in index.needs_rebuild
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.add(np.array([30]), vectors[30:31])


# Refusals.

NAN_VECTORS = AXES.copy()
NAN_VECTORS[1, 2] = np.nan
HUGE = np.eye(4)  # float64: finite there, infinite as float32
HUGE[3, 3] = 1e300

BAD_ITEMS = {
    "duplicate keys": ([1, 2, 1, 4], AXES, r"\[1\] stand twice"),
    "negative key": ([1, 2, -3, 4], AXES, "must not be negative; got -3"),
    "float keys": ([1.0, 2.0, 3.0, 4.0], AXES, "integers"),
    "keys of two dimensions": ([[1, 2], [3, 4]], AXES, "integers"),
    "NaN": ([5, 6, 7, 8], NAN_VECTORS, r"keys \[6\] hold NaN"),
    "too large for float32": ([5, 6, 7, 8], HUGE, r"keys \[8\] hold NaN or inf"),
    "fewer keys than vectors": ([5, 6, 7], AXES, "one a key"),
    "one dimension": ([5, 6, 7, 8], AXES[0], "one a key"),
    "integers": ([5, 6, 7, 8], np.eye(4, dtype=np.int64), "must be floats"),
}


def test_items_that_are_refused(axes):
    for keys, vectors, message in BAD_ITEMS.values():
        for change in (axes.add, axes.build):
            with pytest.raises(ValueError, match=message):
                change(np.array(keys), vectors)
            assert rows_of(axes.search(QUERY, 4)) == [[70, 20, 90, 40]]


def test_wrong_dimension(axes):
    with pytest.raises(ValueError, match=r"Expected vectors \[4, 4\].*got \(4, 3\)"):
        axes.add(np.arange(4), AXES[:, :3])
    with pytest.raises(ValueError, match=r"num_queries, 4\].*got \(1, 3\)"):
        axes.search(QUERY[:, :3], 1)
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        axes.search(QUERY[0], 1)


def test_nothing_to_build(backend):
    for shape in [(0, 4), (2, 0)]:
        with pytest.raises(ValueError, match=r"got none|Expected vectors"):
            make(backend, "dot", np.arange(shape[0]), np.empty(shape))


def test_queries_that_are_not_finite(axes):
    # The two infinities of the last one cancel each other.
    for values in ([np.nan, 0], [INF, 0], [-INF, 0], [INF, -INF]):
        queries = np.repeat(QUERY, 3, 0)
        queries[1, 2:] = values
        with pytest.raises(ValueError, match="NaN or infinite"):
            axes.search(queries, 2)


def test_integer_queries(axes):
    with pytest.raises(ValueError, match=r"of floats.*int64"):
        axes.search(QUERY.astype(np.int64), 2)


NO_COUNTS = [0, -1, -(2**63), True, np.bool_(True), 2.0, np.float32(2), np.nan, "2", None, [2]]


def test_k_that_is_no_count(axes):
    for k in [*NO_COUNTS, np.array(2), np.int8(-1)]:
        for search in (axes.search, axes.search_built):
            with pytest.raises(ValueError, match="k must be an integer of 1 or more"):
                search(QUERY, k)
    for kind in (np.int8, np.uint64, np.int32):
        assert rows_of(axes.search(QUERY, kind(1))) == [[70]]


def test_wrong_number_of_exclusion_rows(axes):
    for rows in (0, 1, 3):
        with pytest.raises(ValueError, match=f"exclude has {rows} rows for 2 queries"):
            axes.search(np.repeat(QUERY, 2, 0), 1, exclude=Ragged.empty(rows))


# Keys in every form. 2**53 + 1 is the least integer that no float64 holds.
LARGE = 2**53 + 1
WHOLE = {
    "uint64": lambda keys: np.array(keys, np.uint64),
    "big-endian": lambda keys: np.array(keys, ">i8"),
    "backwards": lambda keys: np.array(keys[::-1])[::-1],
    "read-only": lambda keys: np.frombuffer(np.array(keys).tobytes(), np.int64),
    "a list": lambda keys: list(keys),
}
NO_KEYS = {
    "floats": (lambda keys: np.array(keys, float), "integers; got float64"),
    "booleans": (lambda keys: np.array(keys) > 0, "integers; got bool"),
    "objects": (lambda keys: np.array(keys, object), "integers; got object"),
    "text": (lambda keys: np.array(keys).astype(str), "integers; got <U"),
    "beyond int64": (
        lambda keys: np.array(keys, np.uint64) + np.uint64(2**63),
        "must fit int64",
    ),
    "0-d": (lambda keys: np.array(keys[0]), r"\[num_\w+\].*got \(\)"),
    "2-d": (lambda keys: np.array([keys]), r"\[num_\w+\].*got \(1, 2\)"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_keys_in_every_form(backend, kind):
    form = WHOLE[kind]
    index = make(backend, "dot", form([LARGE, LARGE - 1, LARGE + 1, 3]), AXES)
    assert index.keys.tolist() == [3, LARGE - 1, LARGE, LARGE + 1]
    assert index.knows(form([LARGE, 4])).tolist() == [True, False]
    both = np.repeat(QUERY, 2, 0)
    banned = form([LARGE, LARGE - 1])
    for rows in (ragged([banned, [3]]), Ragged(form([LARGE, LARGE - 1, 3]), np.array([0, 2, 3]))):
        found = index.search(both, 2, exclude=rows)
        assert rows_of(found) == [[LARGE + 1, 3], [LARGE, LARGE - 1]]
    assert rows_of(index.search(QUERY, 3, allow=form([3, LARGE]))) == [[LARGE, 3]]
    index.add(form([LARGE + 4, LARGE]), np.concatenate([2 * QUERY, QUERY]))
    assert rows_of(index.search(QUERY, 3)) == [[LARGE + 4, LARGE, LARGE - 1]]
    index.remove(form([LARGE + 4, LARGE]))
    assert rows_of(index.search(QUERY, 3)) == [[LARGE - 1, LARGE + 1, 3]]


def test_what_is_no_key(axes):
    calls = [
        axes.remove,
        lambda keys: axes.add(keys, AXES[:2]),
        lambda keys: axes.build(keys, AXES[:2]),
        axes.knows,
        lambda keys: axes.search(QUERY, 1, allow=keys),
        lambda keys: axes.search(QUERY, 1, exclude=Ragged(keys, [0, np.size(keys)])),
    ]
    state = axes.keys.tolist()
    for change, message in NO_KEYS.values():
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call(change([20, 70]))
    assert axes.keys.tolist() == state and rows_of(axes.search(QUERY, 1)) == [[70]]


def test_before_build(pair):
    index = build.make(build.IndexConfig(*pair))
    assert len(index) == 0 and index.keys.tolist() == []
    for call in (
        lambda: index.search(QUERY, 1),
        lambda: index.add(np.array([1]), QUERY),
        lambda: index.remove(np.array([1])),
    ):
        with pytest.raises(ValueError, match="the index is empty: call build"):
            call()


def test_zero_vectors(backend, metric):
    vectors = np.concatenate([AXES[:2], np.zeros((1, 4), np.float32)])
    zero = np.zeros((1, 4), np.float32)
    if metric == "cosine":
        with pytest.raises(ValueError, match="zero vector has no direction"):
            make(backend, metric, [1, 2, 3], vectors)
        index = make(backend, metric, [1, 2], AXES[:2])
        with pytest.raises(ValueError, match="zero vector has no direction"):
            index.search(zero, 1)
        with pytest.raises(ValueError, match="zero vector has no direction"):
            index.add(np.array([2]), zero)
        assert rows_of(index.search(QUERY, 3)) == [[1, 2]]
    else:
        # Dot: all score 0 and stand by key. Distance: the zero vector is at 0, the axes at 1.
        wanted = [1, 2, 3] if metric == "dot" else [3, 1, 2]
        assert rows_of(make(backend, metric, [1, 2, 3], vectors).search(zero, 3)) == [wanted]


LONG = {
    "squares overflow": np.float32([2e19, 0, 0, 0]),
    "the longest": np.full(4, 3.4e38, np.float32),
    "distances overflow": np.float32([0, -9.5e18, 0, 0]),
    "all together": np.float32([0.6e18, 0.6e18, 0.6e18, 0.6e18]),
}


@pytest.mark.parametrize("case", LONG)
def test_vectors_whose_scores_overflow(axes, case):
    """They end the process inside FAISS' k-means; or every score is infinite."""
    long = np.stack([QUERY[0], LONG[case]])
    if axes.metric == "cosine":  # lengths do not count
        axes.add(np.array([6, 7]), long)
        for vectors in (long, long[1:]):
            assert 7 in axes.absorb().search(vectors, 2).keys[-1]
        return
    for change in (axes.add, axes.build):
        with pytest.raises(ValueError, match=r"vectors of keys \[7\] are longer than 1e\+18"):
            change(np.array([6, 7]), long)
    for queries in (long, np.asfortranarray(long), long.astype(np.float64), long.astype(">f4")):
        with pytest.raises(ValueError, match=r"queries in rows \[1\] are longer than 1e\+18"):
            axes.search(queries, 2)
    with pytest.raises(ValueError, match=r"queries in rows \[0\] are longer"):
        axes.search(long[1:], 2)
    with pytest.raises(ValueError, match=r"queries in rows \[0\] are longer"):
        axes.search_built(long[1:], 2)
    assert rows_of(axes.search(QUERY, 4)) == [[70, 20, 90, 40]]


def test_the_longest_vectors_that_are_taken(backend, metric):
    index = make(backend, metric, KEYS, 1e18 * AXES)
    queries = 1e18 * np.concatenate([AXES, -AXES])
    found = index.search(queries, 4)
    assert found.keys[:4, 0].tolist() == KEYS and np.isfinite(found.scores).all()
    # Longer together than one may be alone.
    many = np.repeat(queries, 100, 0)
    np.testing.assert_array_equal(index.search(many, 4).keys, np.repeat(found.keys, 100, 0))


def test_cosine_has_no_scale(backend):
    # The squares of such values vanish or overflow in float32; directions are the axes' all along.
    for scale in (1e-45, 1e-25, 1e25):
        index = make(backend, "cosine", KEYS, AXES * np.float32(scale))
        found = index.search(QUERY * np.float32(scale), 4)
        assert rows_of(found) == [[70, 20, 90, 40]]
        np.testing.assert_allclose(found.scores, [AXIS_SCORES["cosine"]], rtol=1e-5)


def test_unknown_names(backend):
    with pytest.raises(ValueError, match="metric must be one of"):
        build.make(build.IndexConfig(backend, "manhattan"))
    with pytest.raises(ValueError, match="backend must be one of"):
        build.make(build.IndexConfig(backend + "2"))
    with pytest.raises(ValueError, match=f"{backend}: .*no_such"):
        build.make(build.IndexConfig(backend, "dot", {"no_such": 1}))


# Copies.


def test_an_index_is_neither_pickled_nor_copied(backend):
    index = make(backend, "dot", KEYS, AXES)
    index.add(np.array([7]), QUERY)
    for _ in range(2):  # before and after a search
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"neither pickled nor copied.*build\.save, and"):
                way(index)
        index.search(np.repeat(QUERY, 3, 0), 2)
    assert rows_of(index.search(QUERY, 2)) == [[7, 70]]


def test_siblings_change_apart(axes):
    axes.add(np.array([7]), QUERY)
    sibling = axes.sibling()
    sibling.remove(np.array([7]))
    sibling.add(np.array([8]), 2 * QUERY)
    axes.remove(np.array([70]))
    assert axes.keys.tolist() == [7, 20, 40, 90] and sibling.keys.tolist() == [8, 20, 40, 70, 90]
    assert rows_of(axes.search(QUERY, 2)) == [[7, 20]]
    assert sorted(rows_of(sibling.search(QUERY, 9))[0]) == [8, 20, 40, 70, 90]


# What is handed through.


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


# Imports.


def test_no_tensorflow_without_scann():
    names = [
        "twotower.evaluation.metrics",
        "twotower.evaluation.evaluate",
        "twotower.retrieval.base",
        "twotower.retrieval.backends.brute_force",
        "twotower.retrieval.backends.faiss_index",
        "twotower.retrieval.backends.ivf_pq",
        "twotower.retrieval.build",
    ]
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'tensorflow' not in sys.modules, name\nprint('done')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"
