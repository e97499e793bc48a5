"""A bundle that has learned nothing, with a funnel and an index, and services around it."""

import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import add_index, export
from twotower.funnel.making import FunnelConfig, make_funnel, parse_sources
from twotower.retrieval.build import IndexConfig
from twotower.training.trainer import Training

CONFIG = FunnelConfig(
    parse_sources(["two_tower:50", "ease:40", "popularity:60"]), merge="reciprocal_rank"
)


def exported(folder, seed: int = 0):
    """The folder of a bundle."""
    made = export(
        Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"seed": seed})), folder, scann=False
    )
    made.add_funnel(make_funnel(CONFIG, made, tiny.dataset(), tiny.split()))
    add_index(made, "hnsw", IndexConfig("hnsw"))
    return folder


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    """The bundle of another training."""
    return exported(tmp_path_factory.mktemp("other") / "bundle", seed=7)


@pytest.fixture(scope="session")
def bundle(bundle_folder):
    return Bundle(bundle_folder)
