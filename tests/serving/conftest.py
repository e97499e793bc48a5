"""A bundle that has learned nothing, with a funnel and an index, and services around it."""

import pathlib
import shutil

import numpy as np
import pytest
import tiny
from fastapi.testclient import TestClient

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import add_index, export
from twotower.bundle.item_map import ItemMap
from twotower.funnel.making import FunnelConfig, make_funnel, parse_sources
from twotower.ranking import making
from twotower.ranking.candidate_ranker import CandidateRanker
from twotower.ranking.columns import CandidateColumns
from twotower.ranking.inputs import NUMBERS
from twotower.retrieval.build import IndexConfig
from twotower.serving.app import create_app
from twotower.serving.guard import Limits
from twotower.serving.histories import Histories
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service
from twotower.training.training import Training

CONFIG = FunnelConfig(
    parse_sources(["two_tower:50", "ease:40", "popularity:60"]), merge="reciprocal_rank"
)


def exported(folder, seed: int = 0, **parts):
    """The folder of a bundle, whose map is a grid: nobody has to wait for a real one."""
    recipe = tiny.recipe(fit={"seed": seed}, **parts)
    made = export(Training(tiny.dataset(), tiny.split(), recipe), folder, scann=False)
    made.add_funnel(make_funnel(CONFIG, made, tiny.dataset(), tiny.split()))
    add_index(made, "hnsw", IndexConfig("hnsw"))
    grid = np.stack(np.divmod(np.arange(len(made.keys)), 20), 1) / 20
    made.add_map(ItemMap(np.asarray(made.keys), grid.astype(np.float32), 0.5))
    return folder


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def service(bundle_folder, state):
    return Service(Live((Pipeline(bundle_folder),)), state, histories=Histories(tiny.dataset()))


@pytest.fixture(scope="module")
def client(service):
    with TestClient(create_app(service, Limits(body_bytes=200_000))) as client:
        yield client


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    """The bundle of another training."""
    return exported(tmp_path_factory.mktemp("other") / "bundle", seed=7)


@pytest.fixture(scope="session")
def poor_folder(other_folder, tmp_path_factory):
    """The bundle of another training, without a map and with no index besides `exact`."""
    folder = pathlib.Path(shutil.copytree(other_folder, tmp_path_factory.mktemp("poor") / "bundle"))
    for part in ("map", "index"):
        shutil.rmtree(folder / part)
    return folder


@pytest.fixture(scope="module")
def ranked_pipeline(bundle_folder):
    """Its ranker answers the items of most training rows first; by `like` those of fewest."""
    opened = Pipeline(bundle_folder, source_deadline=60)
    funnel = opened.funnels["default"]
    columns = CandidateColumns.fit(
        tiny.dataset(), tiny.split().train, opened.bundle, [*funnel.sources]
    )

    def outputs(values):
        rows = values[NUMBERS][..., columns.numbers.index("rows")]
        return {"relevance": rows, "like": -rows}

    heads = ("relevance", "like")
    making.place(funnel, CandidateRanker(columns, outputs, heads, residual=False), "hand")
    return opened


@pytest.fixture(scope="session")
def folder_with_vectors(tmp_path_factory):
    """A bundle whose item tower reads what that of the quick start reads, a vector among it."""
    texts, numbers = ("item_id", "title", "description", "genres", "maker"), ("year", "quality")
    item = {"features": (*texts, *numbers, "audio", "age")}
    return exported(tmp_path_factory.mktemp("vectors") / "bundle", item=item)


@pytest.fixture(scope="session")
def bundle(bundle_folder):
    return Bundle(bundle_folder)


@pytest.fixture
def copy(bundle_folder, tmp_path):
    return pathlib.Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))
