"""Every backend against a dictionary, while the number of items crosses a limit of the backend.

Programs of 10,000 steps are slow.
"""

import numpy as np
import pytest
from backends import needs
from index_programs import DIM, PARAMETERS
from index_twins import Twins, make

from twotower.retrieval import build
from twotower.retrieval.base import METRICS

# The number of items at which a backend changes its structure, and the constant that says so.
CHANGES = {
    "ivf": ("ivf.LEAST_SHARED", 20_000),
    "ivf_pq": ("ivf_pq.LEAST_ITEMS", 1000),
    "tiered": ("ivf_pq.LEAST_ITEMS", 1000),
    "scann": ("", 100),  # its least, and twice the leaves
}
LOCAL = [backend for backend in build.BACKENDS if backend != "milvus"]
FEW_LISTS = {"num_lists": 20, "num_probes": 5, "training_iterations": 2}
FEW_CODES = {**FEW_LISTS, "code_bytes": 4, "refine": 3}
TIDE_PARAMETERS = {
    **PARAMETERS,
    "ivf": FEW_LISTS,
    "ivf_pq": FEW_CODES,
    "tiered": {**FEW_CODES, "fresh_buffer": 40},
}


def tide(twins, rng, limit, num):
    """`num` steps, in which the items become more than `limit` and fewer again, over and over.

    While they become more some are removed, too, so that what is absorbed has gaps. The first keys
    are 0, 1, 2, ..., which is a kind of its own: a key is then its position.
    """
    most, new = 4 * limit, limit // 8
    is_rising = True
    for _ in range(num):
        if len(twins.known) > 1.3 * limit:
            is_rising = False
        elif len(twins.known) < 0.6 * limit:
            is_rising = True
        draw, size = rng.random(), int(rng.integers(1, new + 1))
        if draw < 0.3:
            is_more = is_rising == (rng.random() < 0.75)
            if is_more:
                keys = rng.choice(most, size, replace=False).tolist()
                yield "add", dict(zip(keys, np.float32(rng.normal(size=(size, DIM)))))
            elif twins.known:
                some = twins.arrays()[0]
                size = min(size, len(some))
                yield "remove", rng.choice(some, size, replace=False).tolist()
        elif draw < 0.45:
            yield ("absorb",)
        elif draw < 0.5:
            yield ("rebuild",)
        elif draw < 0.58:
            yield "disk", bool(rng.integers(2))
        else:
            queries = rng.normal(size=(rng.integers(1, 4), DIM))
            banned = [rng.choice(most, rng.integers(20)).tolist() for _ in queries]
            allow = rng.choice(most, most // 3, replace=False).tolist()
            k = int(rng.choice([1, 10, 30, len(twins.known) + 1]))
            yield "search", queries, k, banned, allow if rng.random() < 0.2 else None


def tides(backend, num, seed, limit, parameters=None):
    """Plays a tide; the twins, after a check that the backend passed the limit both ways."""
    rng = np.random.default_rng(seed)
    vectors = np.float32(rng.normal(size=(limit - 1, DIM)))
    index = make(needs(backend), METRICS[seed % 3], parameters or TIDE_PARAMETERS.get(backend))
    twins = Twins(index, dict(enumerate(vectors)))
    twins.play(tide(twins, rng, limit, num))
    twins.check_reach(twins.arrays()[0][:20].tolist())
    is_over = np.array(twins.sizes) >= limit
    assert (is_over[1:] & ~is_over[:-1]).any(), "never passed upwards"
    assert num < 1000 or (~is_over[1:] & is_over[:-1]).any(), "never passed downwards"
    return twins


@pytest.mark.parametrize(("turn", "backend"), enumerate(LOCAL))
def test_past_the_sizes_of_a_change(turn, backend, monkeypatch):
    name, limit = CHANGES.get(needs(backend), ("", 100))
    if name:
        limit = 300  # codes are learned from 256 or more
        monkeypatch.setattr(f"twotower.retrieval.backends.{name}", limit)
    for seed in (turn, turn + 1):
        tides(backend, 120, seed, limit)


@pytest.mark.slow
@pytest.mark.parametrize("metric", range(3))
@pytest.mark.parametrize("backend", LOCAL)
def test_past_the_sizes_of_a_change_10000_steps(backend, metric, monkeypatch):
    name, limit = CHANGES.get(needs(backend), ("", 100))
    if limit > 1000:
        limit = 300
        monkeypatch.setattr(f"twotower.retrieval.backends.{name}", limit)
    tides(backend, 10_000 // 3 + 1, metric, limit)


@pytest.mark.slow
def test_past_20000_items():
    tides("ivf", 1000, 0, CHANGES["ivf"][1])


@pytest.mark.parametrize("backend", ["ivf_pq", "tiered"])
def test_removed_vectors_are_never_built_over(backend, tmp_path):
    # One item fewer than codes are learned from. A hundred go, ten come, and once those are in a
    # hundred more, so that the codes are learned in the second `absorb`.
    vectors = np.float32(np.random.default_rng(0).normal(size=(1109, DIM)))
    index = make(needs(backend), "dot", TIDE_PARAMETERS[backend])
    index.build(np.arange(999), vectors[:999])
    index.remove(np.arange(100))
    for first, end in [(999, 1009), (1009, 1109)]:
        index.add(np.arange(first, end), vectors[first:end])
        index.absorb()
        live = np.arange(100, end)
        found = index.search(vectors[:50], 2000)
        assert np.array_equal(np.sort(found.keys, 1), np.tile(live, (50, 1)))
        assert (index.search_built(vectors[:50], 30).keys >= 100).all()
        build.save(index, tmp_path / "i")
        assert np.array_equal(build.load(tmp_path / "i").keys, live)
    assert index.backend_bytes > 0  # codes by now
