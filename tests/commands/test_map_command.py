"""build_map as a person runs it, on a bundle that has learned nothing."""

import re

import numpy as np
import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import export
from twotower.commands.build_map import chosen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import ReciprocalRank
from twotower.funnel.sources.popularity import Popularity
from twotower.training.training import Training

SCRIPT = tiny.ROOT / "experiments" / "build_map.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps") / "bundle"
    export(Training(tiny.dataset(), tiny.split(), tiny.recipe()), folder, scann=False)
    return folder


def test_it_draws_all_items(folder):
    pytest.importorskip("sklearn")
    bundle = Bundle(folder)
    printed = tiny.script(SCRIPT, f"--bundle={folder}").stdout
    (trust,) = re.findall(r"trustworthiness at 15 neighbours: (0\.\d{4})", printed)
    assert f"{len(bundle.keys)} of {len(bundle.keys)} items, all there are" in printed
    found = bundle.item_map()
    assert found.trustworthiness == pytest.approx(float(trust), abs=1e-4)
    np.testing.assert_array_equal(found.keys, bundle.keys)


def test_of_a_large_catalogue_it_draws_the_most_popular(folder):
    bundle = Bundle(folder)
    # Nobody has counted anything, so they are any items.
    keys, which = chosen(bundle, 40, seed=0)
    assert which == "a random sample" and len({*keys}) == 40 and (np.diff(keys) > 0).all()
    popular = bundle.keys[[5, 3, 200, 4]]
    source = Popularity(popular, np.float32([4, 3, 2, 1]))
    bundle.add_funnel(Funnel({"popular": Inlet(source)}, ReciprocalRank()), "small")
    keys, which = chosen(bundle, 3, seed=0)
    assert which == "the most popular of the funnel small"
    assert keys.tolist() == bundle.keys[[3, 5, 200]].tolist()
