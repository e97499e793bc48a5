"""Recipes and trainings on the tiny service without what is drawn, or told what their validation
finds."""

import tiny

from twotower.training.training import Training

# Recipe without any drawn number but the first weights and the order of examples.
QUIET = tiny.recipe(query={"unknown_rate": 0.0, "history_dropout": 0.0}, item={"unknown_rate": 0.0})


def planted(monkeypatch, figures, **fit_fields):
    """A training that is told `figures`, one an epoch; and its item vectors then, by epoch."""
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit=fit_fields))
    tiny.without_learning(training)
    figures, weights = iter(figures), {}

    def validate():
        weights[len(weights) + 1] = training.item_vectors(training.split.candidates)
        return {"recall_micro@100": {"mean": next(figures), "low": 0.0, "high": 1.0}}

    monkeypatch.setattr(training, "validate", validate)
    return training, weights
