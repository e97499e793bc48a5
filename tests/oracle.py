"""Brute force in float64, straight from the definitions: what every index is held against."""

import numpy as np

INF = float("inf")


def oracle_scores(metric, queries, vectors):
    """In float64, straight from the definitions."""
    queries, vectors = np.asarray(queries, np.float64), np.asarray(vectors, np.float64)
    if metric == "euclidean":
        return -((queries[:, None] - vectors[None]) ** 2).sum(2)
    if metric == "cosine":
        queries = queries / np.sqrt((queries**2).sum(1, keepdims=True))
        vectors = vectors / np.sqrt((vectors**2).sum(1, keepdims=True))
    return queries @ vectors.T


def oracle(metric, queries, keys, vectors, k, exclude=(), allow=None):
    """Rows of keys, best first, ties by key."""
    rows = []
    for row, scores in enumerate(oracle_scores(metric, queries, vectors)):
        ranked = keys[np.lexsort((keys, -scores))]
        if len(exclude):
            ranked = ranked[~np.isin(ranked, exclude[row])]
        if allow is not None:
            ranked = ranked[np.isin(ranked, allow)]
        rows.append(ranked[:k].tolist())
    return rows


def rows_of(found):
    """Keys up to each row's end, after a check that what is behind it is empty."""
    assert found.keys.dtype == np.int64 and found.scores.dtype == np.float32
    assert (found.keys[~found.valid] == -1).all() and (found.scores[~found.valid] == -INF).all()
    assert (found.keys[found.valid] >= 0).all() and np.isfinite(found.scores[found.valid]).all()
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    return [row[:count].tolist() for row, count in zip(found.keys, found.counts)]
