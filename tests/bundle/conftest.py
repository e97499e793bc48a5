"""Bundles of two trainings that have learned nothing, for all tests of this folder."""

import pathlib
import shutil

import pytest
import tiny

from twotower.bundle import export as exporting
from twotower.bundle.export import add_index, export
from twotower.retrieval.backends.scann_index import available
from twotower.retrieval.build import IndexConfig
from twotower.training.training import Training


@pytest.fixture(scope="session")
def training():
    """With the weights that it begins with: a bundle holds any."""
    return Training(tiny.dataset(), tiny.split(), tiny.recipe())


@pytest.fixture(scope="session")
def exported(training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "bundle"
    bundle = export(training, folder, {"refit": False}, scann=available())
    add_index(bundle, "hnsw", IndexConfig("hnsw"))
    return folder


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """The bundle of another training with the same recipe, items and index."""
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"seed": 7}))
    folder = tmp_path_factory.mktemp("other") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting.scann_index, "available", lambda: False)  # not used here, and slow
        add_index(export(training, folder), "hnsw", IndexConfig("hnsw"))
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return pathlib.Path(shutil.copytree(exported, tmp_path / "bundle"))
