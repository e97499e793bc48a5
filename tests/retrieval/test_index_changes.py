"""Items are added, removed and replaced, and the buffer is absorbed: the next search knows it."""

import warnings

import numpy as np
import pytest
from oracle import oracle, rows_of
from small_indexes import AXES, KEYS, QUERY, agrees, make, ragged

from twotower.retrieval import build, store
from twotower.retrieval.backends.brute_force import BruteForceIndex


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


def test_siblings_change_apart(axes):
    axes.add(np.array([7]), QUERY)
    sibling = axes.sibling()
    sibling.remove(np.array([7]))
    sibling.add(np.array([8]), 2 * QUERY)
    axes.remove(np.array([70]))
    assert axes.keys.tolist() == [7, 20, 40, 90] and sibling.keys.tolist() == [8, 20, 40, 70, 90]
    assert rows_of(axes.search(QUERY, 2)) == [[7, 20]]
    assert sorted(rows_of(sibling.search(QUERY, 9))[0]) == [8, 20, 40, 70, 90]


def test_the_caller_may_reuse_the_array_that_was_added(axes):
    vectors = QUERY.copy()
    axes.add(np.array([7]), vectors)
    vectors[:] = -1
    found = axes.search(QUERY, 5, exclude=ragged([[70]]))
    assert rows_of(found) == [[7, 20, 90, 40]]
    assert np.array_equal(axes.live()[1][-1] > 0, [True] * 4)
