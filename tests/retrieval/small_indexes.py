"""Four unit axes and their scores, and how an answer is held against that of brute force."""

import numpy as np
from oracle import rows_of

from twotower.ragged import Ragged
from twotower.retrieval import build


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

NUM, DIM = 1200, 16


def clusters_of(num, num_clusters, noise, num_queries, seed):
    """`num` items of some clusters, keys 5, 12, 19, ... shuffled; queries of the same clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_clusters, DIM))

    def draw(size):
        drawn = centres[rng.integers(0, num_clusters, size)] + noise * rng.normal(size=(size, DIM))
        return np.float32(drawn)

    vectors, queries = draw(num), draw(num_queries)
    return rng.permutation(np.arange(num) * 7 + 5), vectors, queries


def agrees(found, wanted, exact):
    """Exact answers are equal to the oracle's; the others hold .9 of it and as many items."""
    found = rows_of(found)
    assert [len(row) for row in found] == [len(row) for row in wanted]
    if exact:
        assert found == wanted
    hits = sum(len(set(a) & set(b)) for a, b in zip(found, wanted))
    assert hits >= 0.9 * sum(map(len, wanted)) > 0
