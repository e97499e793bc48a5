"""A build or an absorb fails, as without memory: the index refuses to answer, and loses nothing."""

import numpy as np
import pytest
from backends import needs
from oracle import rows_of
from small_indexes import AXES, KEYS, QUERY, make

from twotower.retrieval import build

REFUSED = r"failed half-way: call build\(\*index\.live\(\)\)"


def fail(*_):
    raise MemoryError


def test_an_absorb_that_fails_half_way(backend, tmp_path, monkeypatch):
    """Key 90 is gone from the backend, and key 7 is not in it yet."""
    index = make(backend, "dot", KEYS, AXES)
    index.remove(np.array([90]))
    index.add(np.array([7]), QUERY)
    step = "_append" if index.can_append else "_build"
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(type(index), step, fail)
        index.absorb()
    for call in (
        lambda: index.search(QUERY, 1),
        lambda: index.search_built(QUERY, 1),
        lambda: index.absorb(),
        lambda: build.save(index, tmp_path / "i"),
    ):
        with pytest.raises(ValueError, match=REFUSED):
            call()
    assert index.build(*index.live()).keys.tolist() == [7, 20, 40, 70]
    assert rows_of(index.search(QUERY, 4)) == [[7, 70, 20, 40]]


def test_a_build_that_fails_half_way(backend, monkeypatch):
    index = make(backend, "dot", KEYS, AXES)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(type(index), "_build", fail)
        index.build(np.array([1, 2]), AXES[:2])
    with pytest.raises(ValueError, match=REFUSED):
        index.search(QUERY, 1)
    assert rows_of(index.build(*index.live()).search(QUERY, 2)) == [[1, 2]]


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_a_graph_is_searched_by_its_own_metric_after_a_failure(metric, monkeypatch):
    """Vectors of one length are linked by distances, and searched by inner products."""
    needs("hnsw")
    from twotower.retrieval.backends.hnsw import faiss

    index = make("hnsw", metric, KEYS, AXES)
    index.add(np.array([7]), np.float32([[0.6, 0.8, 0, 0]]))
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(faiss.IndexHNSWFlat, "add", fail)
        index.absorb()
    inner = faiss.METRIC_INNER_PRODUCT
    storage = faiss.downcast_index(index._index.storage)
    assert index._index.metric_type == storage.metric_type == inner
    assert index._index.hnsw.is_similarity
