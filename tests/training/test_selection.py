"""Which epoch is kept, and when a training stops early, by planted figures."""

import numpy as np
import pytest
import tiny
from small_trainings import planted

from twotower.training.fitting import fit
from twotower.training.training import Training


def test_early_stopping_restores_the_best_weights(tmp_path, monkeypatch):
    # The second epoch is best, then two worse ones.
    figures = [0.1, 0.3, 0.2, 0.25, 0.9]
    training, weights = planted(monkeypatch, figures, epochs=5, patience=2)
    keys = training.split.candidates
    result = fit(training, tmp_path)
    assert (result.epoch, result.best_epoch, result.best, result.stopped) == (4, 2, 0.3, True)
    assert result.validation["recall_micro@100"]["mean"] == 0.3
    np.testing.assert_array_equal(training.item_vectors(keys), weights[2])
    assert np.abs(weights[4] - weights[2]).max() > 1e-3
    # A stopped run stays stopped.
    assert fit(training, tmp_path).epoch == 4


def test_in_a_small_catalogue_a_figure_selects_that_can_tell(tmp_path, monkeypatch):
    # Of 297 candidates any model finds all among the first 500; among the first 100 it does not.
    fields = {"epochs": 3, "patience": 0, "metric": "recall_micro@500"}
    training, _ = planted(monkeypatch, [0.1, 0.3, 0.2], **fields)
    result = fit(training, tmp_path)
    assert (result.metric, result.best_epoch, result.best) == ("recall_micro@100", 2, 0.3)


def test_the_last_epoch_is_kept_where_the_recipe_says_so(tmp_path, monkeypatch):
    training, weights = planted(monkeypatch, [0.3, 0.1, 0.2], epochs=3, keep_best=False)
    result = fit(training, tmp_path)
    assert (result.epoch, result.best_epoch, result.best, result.stopped) == (3, 3, 0.2, False)
    vectors = training.item_vectors(training.split.candidates)
    np.testing.assert_array_equal(vectors, weights[3])
    assert np.abs(weights[3] - weights[1]).max() > 1e-3


def test_the_last_epoch_is_judged_between_two_validations(tmp_path, monkeypatch):
    for keep_best, kept in ((True, 2), (False, 3)):
        figures = {"epochs": 3, "validate_every": 2, "keep_best": keep_best}
        training, _ = planted(monkeypatch, [0.3, 0.1], **figures)
        result = fit(training, tmp_path / str(keep_best))
        assert result.best_epoch == kept
        assert ["recall_micro@100" in entry for entry in result.log] == [False, True, True]


def test_without_selection_the_last_epoch_counts(tmp_path, monkeypatch):
    training = Training(tiny.dataset(), tiny.split(part="test"), tiny.DEFAULT)
    monkeypatch.setattr(training, "validate", lambda: pytest.fail("a refit has no validation"))
    result = fit(tiny.without_learning(training), tmp_path, select=False, stop_after=2)
    assert (result.epoch, result.best_epoch, result.validation) == (2, 0, {})
    assert [set(entry) for entry in result.log] == [{"epoch", "loss", "seconds"}] * 2
