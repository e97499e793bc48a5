"""Arrays that nobody should give an index, given to one: run as a program, so that it may crash.

`python hostile.py "BACKEND ..." FIRST STEP` plays cases FIRST, FIRST + STEP, ... of each backend.
It begins a line before each and ends it after that, so that whoever started it knows which case
ended it. An answer is checked, and so is the type of an error.
"""

import faulthandler
import itertools
import sys
import warnings

import numpy as np
from oracle import oracle_scores, rows_of

from twotower.ragged import Ragged
from twotower.retrieval import build
from twotower.retrieval.base import METRICS

DIM = 8
# Where a backend changes its kind: under and over the least items that each has codes for.
SIZES = {"ivf_pq": (30, 1040), "tiered": (30, 1040), "scann": (30, 300)}
PARAMETERS = {
    "hnsw": {"ef_construction": 20},
    "ivf": {"num_lists": 4},
    "ivf_pq": {"num_lists": 4, "training_iterations": 2},
    "tiered": {"num_lists": 4, "training_iterations": 2, "fresh_buffer": 5},
}
VALUES = [
    *(np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 2e19, 1e19, 9e18, -2e18, 3e17),
    *(1e-20, 1e-38, 1e-40, -1e-45, 1e-45, -0.0, 1e300, 1e-300),
]
PLACES = {
    "a value": (slice(3, 4), slice(2, 3)),
    "a row": (slice(3, 4), slice(None)),
    "a column": (slice(None), slice(2, 3)),
    "half": (slice(None, None, 2), slice(None)),
    "all": (slice(None), slice(None)),
}


def unaligned(array):
    """The same values at an odd address."""
    room = np.zeros(array.nbytes + 1, np.uint8)
    odd = room[1:].view(array.dtype).reshape(array.shape)
    odd[...] = array
    return odd


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def spread(array):
    """Every second row and column of a larger array."""
    large = np.full([2 * size for size in array.shape], np.nan).astype(array.dtype)
    large[tuple([slice(None, None, 2)] * array.ndim)] = array
    return large[tuple([slice(None, None, 2)] * array.ndim)]


FORMS = {
    "fortran": np.asfortranarray,
    "spread": spread,
    "backwards": lambda array: array[::-1].copy()[::-1],
    "columns backwards": lambda array: array[..., ::-1].copy()[..., ::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "one row for all": lambda array: np.broadcast_to(array[:1], array.shape),
    "list": lambda array: array.tolist(),
    "no rows": lambda array: array[:0],
    "no columns": lambda array: array[:, :0],
    "three dimensions": lambda array: array[None],
    "one dimension": lambda array: array[0],
    "no dimension": lambda array: array[0, 0],
    "ragged list": lambda array: [[1.0], [1.0, 2.0]],
    "nothing": lambda array: None,
    "text": lambda array: "vectors",
    **{
        name: lambda array, name=name: array.astype(name)
        for name in (
            *("f2", "f4", "f8", "longdouble", ">f2", ">f4", ">f8", "?", "O", "c8", "c16", "S9"),
            *("U9", "i1", "i2", "i4", "i8", "u1", "u8", ">i8", "m8[s]", "M8[s]"),
        )
    },
}
KEYS = {
    "uint64": lambda keys: keys.astype(np.uint64),
    "uint64 beyond int64": lambda keys: keys.astype(np.uint64) + np.uint64(2**63),
    "beyond 2**53": lambda keys: keys + 2**53,
    "beyond 2**62": lambda keys: keys + 2**62,
    "one less than 2**63": lambda keys: np.full_like(keys, 2**63 - 1),
    "negative": lambda keys: -keys - 2**62,
    "least": lambda keys: np.full_like(keys, -(2**63)),
    "uint8": lambda keys: keys.astype(np.uint8),
    "big-endian": lambda keys: keys.astype(">i8"),
    "floats": lambda keys: keys.astype(np.float64),
    "NaN": lambda keys: np.full(len(keys), np.nan),
    "booleans": lambda keys: keys > 2,
    "objects": lambda keys: keys.astype(object),
    "long integers": lambda keys: [2**64 + key for key in keys.tolist()],
    "text": lambda keys: keys.astype(str),
    "complex": lambda keys: keys.astype(complex),
    "dates": lambda keys: keys.astype("M8[s]"),
    "0-d": lambda keys: keys[0],
    "2-d": lambda keys: keys[None],
    "empty 2-d": lambda keys: np.empty((0, 3), np.int64),
    "a number": lambda keys: 3,
    "nothing": lambda keys: None,
    "a list": lambda keys: keys.tolist(),
    "an empty list": lambda keys: [],
    "a set": lambda keys: set(keys.tolist()),
    **{name: FORMS[name] for name in ("spread", "backwards", "read-only", "unaligned")},
}
COUNTS = [
    *(2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 0, -1, -(2**63)),
    *(
        True,
        2.0,
        np.nan,
        np.inf,
        "3",
        None,
        1 + 2j,
        [3],
        np.array(3),
        np.float32(2),
        np.bool_(True),
    ),
    *(np.int8(3), np.uint64(2**64 - 1), np.int64(2**63 - 1)),
]


def whole(metric, size, seed=0):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(size=(size, DIM)) + 0.2)


def valued(array, value, place):
    array = array.astype(np.float64)
    array[PLACES[place]] = value
    if abs(value) <= 3.4e38:
        array = array.astype(np.float32)
    return array


def cases(backend):
    """(name, function) of all cases: each an answer, a ValueError or a TypeError."""
    for metric, size in itertools.product(METRICS, SIZES.get(backend, (30,))):
        first = f"{metric} {size}"
        for value, place in itertools.product(VALUES, PLACES):
            for door in ("build", "add", "query", "queries"):
                yield (
                    f"{first} {door} {value} {place}",
                    lambda a=(backend, metric, size, door, value, place): give_value(*a),
                )
        for form in FORMS:
            for door in ("build", "add", "query", "queries"):
                yield (
                    f"{first} {door} {form}",
                    lambda a=(backend, metric, size, door, form): give_form(*a),
                )
    for size in SIZES.get(backend, (30,)):
        for kind in KEYS:
            for door in ("build", "add", "remove", "allow", "exclude", "rows", "knows"):
                yield (
                    f"{size} keys of {door} {kind}",
                    lambda a=(backend, size, door, kind): give_keys(*a),
                )
        for k in COUNTS:
            for door in ("search", "exclude", "allow", "built", "changed"):
                yield f"{size} k {k!r} {door}", lambda a=(backend, size, door, k): give_count(*a)


_LAST = {}


def made(backend, metric, size, fresh=False):
    """An index over `whole`; the last one again where nobody changes it."""
    wanted = backend, metric, size
    if fresh or wanted not in _LAST:
        config = build.IndexConfig(backend, metric, PARAMETERS.get(backend, {}))
        index = build.build(config, np.arange(size) * 3, whole(metric, size))
        if fresh:
            return index
        _LAST.clear()
        _LAST[wanted] = index
    return _LAST[wanted]


def give(backend, metric, size, door, change):
    """Vectors or queries, changed, through one of the doors."""
    if door == "build":
        vectors = change(whole(metric, size))
        config = build.IndexConfig(backend, metric, PARAMETERS.get(backend, {}))
        index = build.build(config, np.arange(size) * 3, vectors)
        check(index, index.search(whole(metric, 3, 1), 5), whole(metric, 3, 1))
    elif door == "add":
        index, keys = made(backend, metric, size, fresh=True), np.arange(12) * 3 + 1
        index.remove(np.arange(5) * 3)
        try:
            index.add(keys, change(whole(metric, 12, 2)))
        except (ValueError, TypeError):
            assert index.keys.tolist() == list(range(15, 3 * size, 3)), "changed all the same"
            raise
        for _ in range(2):
            check(index, index.search(whole(metric, 3, 1), 5), whole(metric, 3, 1))
            index.absorb()
    else:
        index = made(backend, metric, size)
        queries = whole(metric, 4 if door == "queries" else 1, 1)
        queries = change(np.repeat(queries, 4 if door == "query" else 1, 0))
        queries = queries[3:4] if door == "query" and np.ndim(queries) == 2 else queries
        check(index, index.search(queries, 5), queries)
        index.search(queries, 5, Ragged.from_rows([[3]] * len(queries)), np.arange(20))


def give_value(backend, metric, size, door, value, place):
    give(backend, metric, size, door, lambda array: valued(array, value, place))


def give_form(backend, metric, size, door, form):
    give(backend, metric, size, door, FORMS[form])


def give_keys(backend, size, door, kind):
    metric, keys, queries = "dot", KEYS[kind](np.arange(5) * 3), whole("dot", 2, 1)
    if door in ("build", "add"):
        config = build.IndexConfig(backend, metric, PARAMETERS.get(backend, {}))
        if door == "build":
            index = build.build(config, KEYS[kind](np.arange(size) * 3), whole(metric, size))
        else:
            index = made(backend, metric, size, fresh=True)
            index.add(keys, whole(metric, 5, 2))
        check(index, index.search(queries, 5), queries)
        return
    index = made(backend, metric, size, fresh=door == "remove")
    if door == "remove":
        index.remove(keys)
        assert len(index) == size - np.size(keys), "another number of items"
        given = np.asarray(keys).astype(np.int64)
        assert not np.isin(index.keys, given).any(), "a removed key"
    elif door == "knows":
        known = index.knows(keys)
        assert known.tolist() == [key in set(range(0, 3 * size, 3)) for key in list(keys)]
    elif door == "allow":
        found = index.search(queries, 5, allow=keys)
        assert {key for row in rows_of(found) for key in row} <= {int(key) for key in keys}
    else:
        best = index.search(queries, 3).keys  # what there is to exclude
        if door == "rows":
            rows = Ragged.from_rows([KEYS[kind](row) for row in best])
        else:
            values = KEYS[kind](best.ravel())
            rows = Ragged(values, np.array([0, len(values) // 2, len(values)]))
        found = index.search(queries, 5, rows)
        for row, banned in zip(rows_of(found), rows):
            assert not set(row) & {int(key) for key in banned}, "an excluded key"


def give_count(backend, size, door, k):
    queries = whole("dot", 2, 1)
    index = made(backend, "dot", size, fresh=door == "changed")
    num = size
    if door == "exclude":
        found, num = index.search(queries, k, Ragged.from_rows([[0], [3]])), size - 1
    elif door == "allow":
        found, num = index.search(queries, k, allow=np.array([3, 6, 9])), 3
    elif door == "built":
        found = index.search_built(queries, k)
        num = None
    else:
        if door == "changed":
            index.remove(np.arange(3) * 3)
            index.add(np.array([1]), queries[:1])
            num = size - 2
        found = index.search(queries, k)
    assert type(k) is not bool and not isinstance(k, (np.bool_, float)), "took what is no integer"
    assert found.keys.shape[1] <= size
    if num is not None:
        assert found.counts.tolist() == [min(int(k), num)] * 2, found.counts


def check(index, found, queries):
    """Live keys, as many as there are, with their scores; exact answers are the best."""
    rows, keys = rows_of(found), index.keys
    live, vectors = index.live()
    order = np.argsort(live)
    assert np.array_equal(live[order], keys)
    scores = oracle_scores(index.metric, np.asarray(queries, np.float32), vectors)
    scores = scores[:, order]
    assert len(rows) == len(scores)
    scale = np.abs(scores).max(initial=0) + (np.float64(vectors) ** 2).sum(1).max(initial=0)
    near = {"rtol": 1e-4, "atol": 1e-5 * scale if index.metric == "euclidean" else 1e-5}
    for row, answer, got in zip(scores, rows, found.scores):
        assert len(answer) == min(5, len(keys)), "a short row"
        assert np.isin(answer, keys).all(), "no live key"
        true = row[np.searchsorted(keys, answer)]
        np.testing.assert_allclose(got[: len(answer)], true, **near, err_msg="other scores")
        if index.is_exact:
            best = np.sort(row)[::-1][: len(answer)]
            np.testing.assert_allclose(true, best, **near, err_msg="not the best")


def main(backends, first, step):
    faulthandler.enable()
    warnings.simplefilter("ignore")
    for backend in backends:
        for name, case in itertools.islice(cases(backend), first, None, step):
            print(backend, name, sep=": ", end="\t", flush=True)
            try:
                case()
                print("answered", flush=True)
            except (ValueError, TypeError) as error:
                print("refused", str(error)[:300].replace("\n", " "), sep="\t", flush=True)
            except BaseException as error:
                print("WRONG", repr(error)[:300].replace("\n", " "), sep="\t", flush=True)


if __name__ == "__main__":
    main(sys.argv[1].split(), int(sys.argv[2]), int(sys.argv[3]))
