"""A log, and a live index over it that holds the pair of training A."""

import pathlib

import pytest
from backends import needs
from two_trainings import CHECKS, pair

from twotower.live.index import LiveIndex
from twotower.live.log import WriteAheadLog


@pytest.fixture(params=["exact", "hnsw"])
def backend(request):
    return request.param if request.param == "exact" else needs(request.param)


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "log"


@pytest.fixture
def log(path):
    with WriteAheadLog(path) as log:
        yield log


@pytest.fixture
def live(log):
    return LiveIndex(pair(), log, CHECKS)
