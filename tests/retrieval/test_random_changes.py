"""Random adds, removes and searches of thousands of items: every backend against a dictionary.

They are quick for one exact and one approximate backend and slow for the others, and those of
10,000 steps are slow.
"""

import numpy as np
import pytest
from backends import needs
from index_programs import DIM, NUM, PARAMETERS, long_program
from index_twins import FEWER, make

from twotower.retrieval import build
from twotower.retrieval.base import METRICS


def twins_for(backend, metric, num, seed):
    """After `num` steps with NUM items; what is certain for this backend is asserted."""
    twins = long_program(make(needs(backend), metric, PARAMETERS.get(backend)), num, seed)
    done = twins.done
    assert min(done[name] for name in ("add", "remove", "search", "absorb", "disk")) > 0
    twins.check_reach(twins.arrays()[0][:: max(1, NUM // num)].tolist())
    whole = [(0.1,) * DIM], len(twins.known) + 5, [[]], None
    twins.search(*whole)
    assert len(twins.last[0]) == len(twins.known)
    return twins


# Least mean recall over a program; with the parameters above, and while partitions age.
RECALL = {"ivf": 0.7, "hnsw": 0.7, "ivf_pq": 0.6, "tiered": 0.6, "scann": 0.6, "milvus": 0.7}


@pytest.mark.parametrize(
    ("turn", "backend"),
    [
        pytest.param(turn, name, marks=[] if name in ("exact", "ivf") else [pytest.mark.slow])
        for turn, name in enumerate(build.BACKENDS)
    ],
)
def test_thousands_of_items(turn, backend):
    num = 400 // FEWER.get(backend, 1)
    twins = twins_for(backend, METRICS[turn % 3], num, seed=turn)
    recall = np.mean(twins.recalls)
    assert recall == 1 if twins.index.is_exact else recall > RECALL[backend], recall


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", build.BACKENDS)
def test_thousands_of_items_10000_steps(backend, metric):
    twins = twins_for(backend, metric, 10_000 // FEWER.get(backend, 1), seed=len(metric))
    recall = np.mean(twins.recalls)
    assert recall == 1 if twins.index.is_exact else recall > RECALL[backend], recall
