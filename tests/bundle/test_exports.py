"""Exports that are refused, interrupted, or two at once."""

import warnings

import numpy as np
import pandas as pd
import pytest
import tiny

from twotower.bundle import export as exporting
from twotower.bundle.bundle import Bundle
from twotower.bundle.export import add_index, export
from twotower.data.dataset import Dataset
from twotower.data.splits import make_split
from twotower.retrieval.build import IndexConfig
from twotower.training.training import Training


def test_vectors_that_are_not_finite_are_not_exported(training, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "item_vectors", lambda keys: np.full((len(keys), 8), np.nan))
    with pytest.raises(ValueError, match="diverged"):
        export(training, tmp_path / "bundle")


def test_interrupted_export_leaves_the_old_bundle(copy, training, monkeypatch):
    def broken(*args):
        raise KeyboardInterrupt

    before = (copy / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "save_retrieve", broken)
        with pytest.raises(KeyboardInterrupt):
            export(training, copy, {"refit": False})
    assert (copy / "manifest.json").read_bytes() == before
    Bundle(copy)
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]


def test_an_export_spares_what_is_not_a_bundle(training, copy):
    """Neither a folder of something else, nor a bundle into which somebody put a file."""
    (copy / "index" / "hnsw" / "notes.txt").write_text("shopping list")
    for folder in (copy, copy / "items"):
        with pytest.raises(ValueError, match="is not replaced"):
            export(training, folder)
    assert (copy / "index" / "hnsw" / "notes.txt").exists()
    (copy / "index" / "hnsw" / "notes.txt").unlink()
    Bundle(copy).retriever("hnsw")


def test_two_exports_into_one_folder(training, exported, copy, monkeypatch):
    """One begins and ends while the other is at work: the last to end stands there, whole."""
    newer = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"seed": 7}))
    real = exporting.save_retrieve
    monkeypatch.setattr(exporting.scann_index, "available", lambda: False)

    def meanwhile(*args):
        real(*args)
        monkeypatch.setattr(exporting, "save_retrieve", real)
        assert export(newer, copy).model_version != version

    version = Bundle(exported).model_version
    monkeypatch.setattr(exporting, "save_retrieve", meanwhile)
    assert export(training, copy, {}).model_version == version
    bundle = Bundle(copy)
    cases = training.split.cases.take(np.arange(5))
    found = bundle.query_tower(training.raw_query_inputs(cases))
    np.testing.assert_allclose(found, training.query_vectors(cases), atol=1e-5)
    assert bundle.indexes == [] and [path.name for path in copy.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("num_items", [15, 16])
def test_a_catalogue_too_small_for_scann(num_items, tmp_path):
    """ScaNN learns 16 codes, so that fewer items have no layer; the rest is exported."""
    pytest.importorskip("scann")
    items = [f"i{number}" for number in range(num_items)]
    rows = [(user, item) for user in ("u", "v") for item in items]
    dataset = Dataset(
        "few",
        pd.DataFrame(rows, columns=["user_id", "item_id"]).assign(timestamp=range(2 * num_items)),
        pd.DataFrame({"item_id": items}),
        pd.DataFrame({"user_id": ["u", "v"]}),
    )
    recipe = tiny.recipe(item={"features": ("item_id",)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bundle = export(
            Training(dataset, make_split(dataset, "loo"), recipe), tmp_path / "b", scann=True
        )
    told = [str(warning.message) for warning in caught if "retrieve_scann" in str(warning.message)]
    assert (bundle.directory / "retrieve_scann").is_dir() == (num_items == 16)
    assert [message[:48] for message in told] == (
        [] if num_items == 16 else ["retrieve_scann needs 16 items, and there are 15:"]
    )
    add_index(bundle, "scann", IndexConfig("scann"))
    assert bundle.indexes == ["scann"]
