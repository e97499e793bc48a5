"""What every index refuses, and keys and numbers at the ends of what it takes."""

import copy
import pickle

import numpy as np
import pytest
from oracle import INF, rows_of
from small_indexes import AXES, AXIS_SCORES, KEYS, QUERY, make, ragged

from twotower.ragged import Ragged
from twotower.retrieval import build

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


# Backend -> its parameters that a library takes as int32.
INT32_PARAMETERS = {
    "flat": ("threads",),
    "hnsw": ("neighbours", "ef_construction", "ef_search", "refine"),
    "ivf": ("num_lists", "num_probes", "training_points", "training_iterations"),
    "ivf_pq": ("training_iterations", "code_bytes", "refine"),
    "tiered": ("training_points", "fresh_buffer"),
    "scann": ("num_leaves", "num_reordering_candidates", "training_iterations"),
}


def test_parameters_beyond_int32(backend):
    for name in INT32_PARAMETERS.get(backend, ()):
        for value in (2**31, 2**40):
            with pytest.raises(ValueError, match=f"{name} must be 2147483647 or less; got {value}"):
                build.make(build.IndexConfig(backend, "dot", {name: value}))


# Parameters of effort, which no index takes further than to all of its vectors.
LARGEST_EFFORTS = {
    "hnsw": ("ef_construction", "ef_search", "refine"),
    "ivf": ("num_lists", "num_probes", "training_points"),
    "ivf_pq": ("num_probes", "refine"),
    "scann": ("num_reordering_candidates",),
}


def test_the_largest_efforts_are_those_of_all_vectors(backend):
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    exact = make("exact", "dot", np.arange(300), vectors)
    for name in LARGEST_EFFORTS.get(backend, ()):
        given = {"scann": {"num_leaves": 3, "num_leaves_to_search": 2}}.get(backend, {})
        config = build.IndexConfig(backend, "dot", given | {name: 2**31 - 1})
        index = build.build(config, np.arange(200), vectors[:200])
        index.search(vectors[:5], 3)
        index.add(np.arange(200, 300), vectors[200:])
        index.absorb()  # the effort is now that of 300 vectors
        found, expected = index.search(vectors[:5], 3), exact.search(vectors[:5], 3)
        if name == "ef_search":
            assert found.keys.tolist() == expected.keys.tolist()
        assert found.counts.tolist() == [3] * 5


def test_an_index_is_neither_pickled_nor_copied(backend):
    index = make(backend, "dot", KEYS, AXES)
    index.add(np.array([7]), QUERY)
    for _ in range(2):  # before and after a search
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"neither pickled nor copied.*build\.save, and"):
                way(index)
        index.search(np.repeat(QUERY, 3, 0), 2)
    assert rows_of(index.search(QUERY, 2)) == [[7, 70]]
