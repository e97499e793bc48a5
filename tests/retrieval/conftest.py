"""Backends and metrics; small indexes, clustered data, saved indexes, and a server of Milvus."""

import shutil

import numpy as np
import pytest
from backends import needs
from saved_indexes import changed_index
from small_indexes import AXES, DIM, KEYS, NUM, make

from twotower.retrieval import build
from twotower.retrieval.base import METRICS


@pytest.fixture(params=build.BACKENDS)
def backend(request):
    return needs(request.param)


@pytest.fixture(params=METRICS)
def metric(request):
    return request.param


PAIRS = [(backend, METRICS[turn % 3]) for turn, backend in enumerate(build.BACKENDS)]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    """Each backend once, and a metric."""
    needs(request.param[0])
    return request.param


@pytest.fixture
def axes(pair):
    return make(*pair, KEYS, AXES)


@pytest.fixture(scope="module")
def clustered():
    """1200 items of 40 clusters, keys 5, 12, 19, ... shuffled; 24 queries of the same clusters."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(40, DIM))
    vectors = np.float32(centres[rng.integers(0, 40, NUM)] + 0.4 * rng.normal(size=(NUM, DIM)))
    queries = np.float32(centres[rng.integers(0, 40, 24)] + 0.4 * rng.normal(size=(24, DIM)))
    return rng.permutation(np.arange(NUM) * 7 + 5), vectors, queries


@pytest.fixture(scope="module", params=build.BACKENDS)
def changed(request):
    """An index of each backend with two items removed, one replaced and one added."""
    return changed_index(request.param)


@pytest.fixture(scope="module")
def pristine(changed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "index"
    build.save(changed, folder, model_version="m1")
    return folder


@pytest.fixture
def saved(pristine, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "index")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server of milvus-lite for all tests of a file."""
    from milvus_server import Server

    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()
