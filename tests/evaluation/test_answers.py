"""Answers that break the rules, or are short or empty, and questions that cannot be asked."""

import numpy as np
import pytest
from small_cases import cases_of, fixed, means, split_of

from twotower.evaluation.evaluate import evaluate


@pytest.mark.parametrize(
    "recommend, message",
    [
        (fixed([3, 3, 4]), "the same item twice"),
        (fixed([3, 9, 4]), r"1 answered items are excluded by their case, key 9"),
        (fixed([3, 2000, 4]), "key 2000 was answered and is no candidate"),
        (fixed([3, -1, 4]), "key -1 inside an answer"),
        (fixed([3, 4], [1, 2]), "scores must descend"),
        (fixed([3, 4], [np.nan, 2]), "without NaN"),
        (fixed(np.arange(600)), r"at most 501 items for each of 1 cases; got \(1, 600\)"),
    ],
)
def test_answers_that_break_the_rules(recommend, message):
    with pytest.raises(ValueError, match=message):
        evaluate(recommend, split_of(cases_of([[5]], exclude=[[9]])))


def test_questions_that_cannot_be_asked():
    with pytest.raises(ValueError, match="0 cases"):
        evaluate(fixed([1]), cases_of([]))
    with pytest.raises(ValueError, match="k \\(0, 5\\)"):
        evaluate(fixed([1]), cases_of([[1]]), ks=(0, 5))
    with pytest.raises(ValueError, match="same target twice"):
        evaluate(fixed([1]), cases_of([[1, 2, 1]]))


def test_short_and_empty_answers():
    cases = cases_of([[5], [6]])
    # One item of 501 asked for: no more is known to the recommender.
    assert means(evaluate(fixed([5]), cases), "recall@10", "mrr@500") == [0.5, 0.5]
    empty = evaluate(fixed([-1], [-np.inf], counts=0), split_of(cases))
    assert means(empty, "recall@500", "mrr@500", "coverage@500") == [0, 0, 0]
