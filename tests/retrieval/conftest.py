"""Backends and metrics; small indexes, clustered data, saved indexes, and a server of Milvus."""

import shutil

import pytest
from backends import needs
from saved_indexes import changed_index
from small_indexes import AXES, KEYS, NUM, clusters_of, make

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
    return clusters_of(NUM, num_clusters=40, noise=0.4, num_queries=24, seed=3)


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
