"""A training that has learned, and what is logged around one, for all tests of this folder."""

import pytest
import tiny

from twotower.training import fitting
from twotower.training import training as training_module
from twotower.training.fitting import fit
from twotower.training.training import Training


@pytest.fixture(scope="session")
def learned(tmp_path_factory):
    """(training, result) after six epochs on `random`, with FactorizedTopK in the log."""
    training = Training(
        tiny.dataset(), tiny.split(), tiny.recipe(fit={"epochs": 6, "topk_every": 1})
    )
    return training, fit(training, tmp_path_factory.mktemp("learned"))


@pytest.fixture
def said(monkeypatch):
    """What is logged while a training is made and fitted."""
    lines = []
    for module in (training_module, fitting):
        for level in ("info", "warning"):
            monkeypatch.setattr(module.logging, level, lambda text, *v: lines.append(text % v))
    return lines
