"""What a bundle is judged on: the data of its training, read as it was read there."""

import types

import pytest

from twotower.commands import judging
from twotower.data import load_dataset


def test_own_tables_are_read_as_the_training_read_them(tmp_path):
    (tmp_path / "log.csv").write_text("visitor,film,ms,stars\nu,a,1000,5\nu,b,2000,3\nv,b,3000,4\n")
    reading = {"interactions": "log.csv", "columns": "user_id=visitor,item_id=film,rating=stars,"
               "timestamp=ms:ms", "min_rating": 4}  # fmt: skip
    trained_on = load_dataset("tables", str(tmp_path), **reading)
    manifest = {"dataset": trained_on.name, "dataset_reading": dict(trained_on.reading)}
    bundle = types.SimpleNamespace(manifest=manifest)
    dataset = judging.dataset_of(bundle, str(tmp_path))
    assert dataset.fingerprint() == trained_on.fingerprint()
    assert dataset.interactions["timestamp"].tolist() == [1, 3]
    # A bundle of earlier versions does not say how: the defaults, which these files do not fit.
    bundle.manifest.pop("dataset_reading")
    with pytest.raises(ValueError, match=r"lacks .*user_id"):
        judging.dataset_of(bundle, str(tmp_path))
