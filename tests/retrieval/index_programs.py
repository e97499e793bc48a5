"""Random programs over thousands of items, under parameters with which every approximate backend
misses some.
"""

import numpy as np
from index_twins import Twins

NUM, DIM = 3000, 16
LISTS = {"num_lists": 50, "num_probes": 5, "training_iterations": 3}
CODES = {**LISTS, "code_bytes": 4, "refine": 3}
PARAMETERS = {
    "ivf": LISTS,
    "hnsw": {"neighbours": 16, "ef_construction": 40, "ef_search": 1},
    "ivf_pq": CODES,
    "tiered": {**CODES, "fresh_buffer": 100},
    "scann": {"num_leaves": 50, "num_leaves_to_search": 5, "num_reordering_candidates": 30},
}
# Steps that come at regular intervals, in turn.
EVENTS = [("absorb",), ("disk", False), ("absorb",), ("rebuild",), ("absorb",), ("disk", True)]


def program(twins, rng, pool, num, events=EVENTS):
    """`num` steps, each drawn when those before it are done.

    A key of `pool` is added, or its vector replaced, about as often as one is removed when half of
    the pool is in the index, so the size stays near that.
    """
    queries, pace = None, min(200, num // 8)
    for turn in range(1, num + 1):
        seen = [key for row in twins.last for key in row if key in twins.known]
        draw = rng.random()
        if turn % pace == 0:
            yield events[turn // pace % len(events)]
        elif draw < 0.3:
            keys = rng.choice(pool, rng.integers(1, 21), replace=False).tolist()
            vectors = np.float32(rng.normal(size=(len(keys), DIM)))
            if rng.random() < 0.2 and twins.known:  # the same vector again, at twice the length
                vectors[0] = 2 * twins.known[next(iter(twins.known))]
            yield "add", dict(zip(keys, vectors))
        elif draw < 0.45 and twins.known:
            # Out of the last answer, or anywhere.
            some = np.unique(seen) if seen and rng.random() < 0.3 else twins.arrays()[0]
            keys = rng.choice(some, min(len(some), rng.integers(1, 21)), replace=False).tolist()
            yield "remove", [*keys, 10**6] if rng.random() < 0.1 else keys
        else:
            banned = [[] for _ in range(3)]
            if queries is not None and rng.random() < 0.5:
                # Once more, without some of what was answered, and an unknown key.
                banned = [[k for k in row if rng.random() < 0.4] + [10**6] for row in twins.last]
            else:
                queries = rng.normal(size=(rng.integers(1, 4), DIM))
                if twins.known and rng.random() < 0.5:  # beside an item
                    queries[0] = 0.9 * twins.known[next(reversed(twins.known))]
            k = int(rng.choice([1, 3, 10, 20, len(twins.known) + 5], p=[0.2, 0.3, 0.3, 0.18, 0.02]))
            allow = None
            if rng.random() < 0.3:
                allow = rng.choice(pool, int(len(pool) ** rng.random()), replace=False).tolist()
            yield "search", queries, k, banned[: len(queries)], allow


def long_program(index, num, seed, size=NUM, **options):
    """Plays a program of `num` steps on `size` items; the twins."""
    rng = np.random.default_rng(seed)
    pool = rng.permutation(2 * size) * 7 + 5
    twins = Twins(index, dict(zip(pool[:size].tolist(), rng.normal(size=(size, DIM)))))
    twins.play(program(twins, rng, pool, num, **options))
    return twins
