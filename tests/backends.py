"""Which library a backend needs; its tests are skipped where that is not installed."""

import pytest

LIBRARIES = {
    "flat": "faiss",
    "ivf": "faiss",
    "hnsw": "faiss",
    "ivf_pq": "faiss",
    "tiered": "faiss",
    "scann": "scann",
    "milvus": "pymilvus milvus_lite",
}


def needs(backend: str) -> str:
    """Skips the test where the library is missing; the backend's name."""
    for library in LIBRARIES.get(backend, "").split():
        pytest.importorskip(library)
    return backend
