"""One contract for the searches of all indexes, against brute force in numpy.

What depends on distances is tried with every backend under every metric. What the base class
settles is tried with each backend once, under the metrics in turn.
"""

import numpy as np
import pytest
from oracle import INF, oracle, oracle_scores, rows_of
from small_indexes import AXES, AXIS_SCORES, KEYS, NUM, QUERY, agrees, make, ragged

from twotower.ragged import Ragged

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


_BUILT = {}


def built(backend, metric, clustered):
    """Built once a backend and metric; tests that change it build their own."""
    if (backend, metric) not in _BUILT:
        _BUILT[backend, metric] = make(backend, metric, *clustered[:2])
    return _BUILT[backend, metric]


@pytest.fixture
def big(pair, clustered):
    return built(*pair, clustered)


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
