"""Two reports on the same cases, compared."""

import numpy as np
import pytest
from small_cases import NUM_ITEMS, cases_of, fixed, split_of

from twotower.evaluation.evaluate import evaluate, from_scores


def test_compare_two_reports():
    split = split_of(cases_of([[0], [1], [2], [3]]))

    def of(best):
        def score(cases):
            scores = np.tile(-np.arange(NUM_ITEMS, dtype=float), (len(cases), 1))
            rows = [int(user[1:]) for user in cases.user_id]
            scores[np.arange(len(cases)), np.array(best)[rows]] = 1
            return scores

        return evaluate(from_scores(score), split, ks=(1,))

    # Hits at 1: 1 1 1 0 and 0 1 0 0. Differences 1 0 1 0: mean .5, se sqrt(4/3 * 1 / 16) = .288675.
    a, b = of([0, 1, 2, 9]), of([9, 1, 9, 9])
    found = a.compare(b, "recall@1")
    assert found["mean"] == 0.5
    assert found["low"] == pytest.approx(0.5 - 1.959964 * 0.288675, abs=1e-5)
    assert a.compare(b, "recall_micro@1")["mean"] == 0.5
    with pytest.raises(ValueError, match="no values of 'coverage@1' by case"):
        a.compare(b, "coverage@1")
    other = evaluate(fixed([9]), cases_of([[5]] * 4), ks=(1,))
    with pytest.raises(ValueError, match="the same cases"):
        a.compare(other, "recall@1")


def test_recall_micro_compares_over_targets():
    # Targets 1 and 3. Hits of a: 1 and 3; of b: 1 and 0: 3 of 4 targets more.
    cases = cases_of([[0], [1, 2, 3]])

    def answers(last):
        def score(asked):
            scores = np.full((len(asked), NUM_ITEMS), -np.arange(NUM_ITEMS, dtype=float))
            scores[1, 1:4] = last
            return scores

        return evaluate(from_scores(score), cases, ks=(5,))

    assert answers(1.0).compare(answers(-9999.0), "recall_micro@5")["mean"] == 0.75
