"""Vectors in clusters, as an index meets them. Numpy only."""

import numpy as np


def clusters(num_items: int, num_queries: int, dim: int = 128):
    """Vectors and queries of length 1 around 100 shared centres."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, dim))

    def draw(num):
        drawn = centres[rng.integers(100, size=num)] + 0.7 * rng.normal(size=(num, dim))
        return np.float32(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))

    return draw(num_items), draw(num_queries)
