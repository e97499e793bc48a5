"""Trees on a ranker's features, worked by hand."""

import numpy as np

from twotower.ranking import trees
from twotower.ranking.examples import WATCH, Examples
from twotower.ranking.inputs import NUMBERS, RankerInputs


def test_pointwise_trees_learn_the_log_odds_of_a_target():
    # One number in two values: a tenth of the candidates with 0 are targets, half of those with 1.
    numbers = np.tile(np.float32([0, 1]), (100, 50))
    labels = np.zeros((100, 100), np.float32)
    labels[:, 0:10:2] = 1  # 5 of 50
    labels[:, 1:51:2] = 1  # 25 of 50
    given = np.zeros((100, 100), np.float32)
    examples = Examples(
        {NUMBERS: numbers[..., None]}, given, {WATCH: labels}, labels.sum(1), np.arange(100)
    )
    inputs = RankerInputs((), ("number",))
    booster = trees.fit(examples, examples, inputs, "pointwise", residual=False)
    found = trees.scores(booster, examples, inputs, residual=False)
    np.testing.assert_allclose(found[:, :2], [[np.log(1 / 9), 0]] * 100, atol=0.02)
