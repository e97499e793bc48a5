"""Random adds, removes and searches of a few items: every backend against a dictionary.

Programs of 10,000 steps are slow.
"""

import collections

import pytest
from backends import needs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_twins import FEWER, Twins, make

from twotower.retrieval import build
from twotower.retrieval.base import METRICS

# Few items, so that hypothesis can reduce a failure to the fewest. Small integers give ties.
SMALL_KEYS = st.integers(0, 12).map(lambda i: i * i + 3)
VECTORS = st.tuples(*[st.integers(-3, 3)] * 3).filter(any)
ROWS = st.lists(st.tuples(VECTORS, st.lists(SMALL_KEYS, max_size=5)), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.dictionaries(SMALL_KEYS, VECTORS, max_size=4)),
        st.tuples(st.just("remove"), st.sets(SMALL_KEYS, max_size=3)),
        st.builds(
            lambda rows, k, allow: ("search", [q for q, _ in rows], k, [b for _, b in rows], allow),
            ROWS,
            st.integers(1, 15),
            st.none() | st.sets(SMALL_KEYS, max_size=8),
        ),
        st.tuples(st.sampled_from(["absorb", "absorb", "rebuild"])),
        st.tuples(st.just("disk"), st.booleans()),
    ),
    max_size=12,
)
FIRST = st.dictionaries(SMALL_KEYS, VECTORS, min_size=1, max_size=10)
WHOLE = ("search", [(1, 2, 3)], 20, [[]], None)


def examples(make_index, num):
    """Plays `num` random programs; how often each step was done."""
    done = collections.Counter()

    @settings(max_examples=num, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(METRICS), FIRST, STEPS)
    def run(metric, first, steps):
        twins = Twins(make_index(metric), first).play([*steps, WHOLE])
        twins.check_reach(list(twins.known))
        done.update(twins.done)

    run()
    return done


@pytest.mark.parametrize("backend", build.BACKENDS)
def test_few_items(backend):
    done = examples(lambda metric: make(needs(backend), metric), 40 // FEWER.get(backend, 1))
    assert sum(done.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", build.BACKENDS)
def test_few_items_10000_steps(backend):
    fewer = FEWER.get(backend, 1)
    done = examples(lambda metric: make(needs(backend), metric), 3000 // fewer)
    assert done["add"] + done["remove"] + done["search"] > 10_000 / fewer, done
