"""Evaluation: models whose figures are known beforehand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from small_cases import (
    NUM_ITEMS,
    answer_by_hand,
    by_hand,
    cases_of,
    means,
    random_split,
    split_of,
)

from twotower.data.dataset import Dataset
from twotower.data.splits import make_split
from twotower.evaluation import evaluate as evaluation
from twotower.evaluation.evaluate import evaluate, from_scores
from twotower.ragged import Ragged

ACCURACY = [
    f"{name}@{k}"
    for name in ("recall", "recall_micro", "hit_rate", "precision", "ndcg")
    for k in (10, 500)
]


def test_a_constant_model_scores_zero():
    constant = from_scores(lambda cases: np.zeros((len(cases), NUM_ITEMS)))
    report = evaluate(constant, random_split())
    assert means(report, *ACCURACY, "mrr@500") == [0.0] * 11


def test_a_model_that_ties_below_its_best_item_gets_no_more_than_that_item():
    # Item 7 is always best, everything else ties. Of four users, one wants it (recall 1).
    def score(cases):
        scores = np.zeros((len(cases), NUM_ITEMS))
        scores[:, 7] = 1
        return scores

    report = evaluate(from_scores(score), split_of(cases_of([[7], [8], [9], [1999]])))
    assert means(report, "recall@10", "recall@500", "ndcg@10", "mrr@500") == [0.25] * 4


def test_an_oracle_scores_one():
    def score(cases):
        scores = np.random.default_rng(1).random((len(cases), NUM_ITEMS))
        scores[cases.targets.row_index, cases.targets.values] = 2  # ties among targets
        return scores

    report = evaluate(from_scores(score), random_split())
    names = ("recall@10", "recall_micro@10", "hit_rate@10", "ndcg@10", "ndcg@500", "mrr@500")
    assert means(report, *names) == pytest.approx([1.0] * 6)


def test_a_random_model_scores_chance():
    # A random model finds a target among the first k of the n items that are not excluded with
    # probability k / n.
    split = random_split(num_cases=2000)
    n = NUM_ITEMS - split.cases.exclude.lengths

    def score(cases):
        return np.random.default_rng(len(cases)).random((len(cases), NUM_ITEMS))

    report = evaluate(from_scores(score, batch_size=5000), split, batch_size=5000)
    for k in (20, 100, 500):
        chance = (k / n).mean()
        found = report.metrics[f"recall@{k}"]
        half = found["high"] - found["mean"]
        assert abs(found["mean"] - chance) < 1.7 * half  # 3.3 standard errors
        # Over targets: each case's chance counts as often as it has targets.
        weights = split.cases.targets.lengths
        chance = np.average(k / n, weights=weights)
        found = report.metrics[f"recall_micro@{k}"]
        assert abs(found["mean"] - chance) < 1.7 * (found["high"] - found["mean"])


def test_shuffled_targets_fall_to_chance():
    split = random_split(num_cases=2000)
    cases = split.cases
    order = np.random.default_rng(5).permutation(len(cases))

    def knows_targets(asked):
        """Scores from the case's own targets, found by its user."""
        rows = np.array([int(user[1:]) for user in asked.user_id])
        wanted = cases.targets.take(rows)
        scores = np.random.default_rng(len(asked)).random((len(asked), NUM_ITEMS))
        scores[wanted.row_index, wanted.values] += 1
        return scores

    recommend = from_scores(knows_targets, batch_size=5000)
    assert evaluate(recommend, split).metrics["recall@100"]["mean"] == 1.0
    nothing_excluded = Ragged.empty(len(cases))
    shuffled = dataclasses.replace(
        cases, targets=cases.targets.take(order), exclude=nothing_excluded
    )
    found = evaluate(recommend, dataclasses.replace(split, cases=shuffled)).metrics["recall@100"]
    assert abs(found["mean"] - 100 / NUM_ITEMS) < 1.7 * (found["high"] - found["mean"])


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_three_cases_by_hand(batch_size):
    report = evaluate(answer_by_hand, by_hand(), ks=(1, 2), batch_size=batch_size)
    # Ranks: 3 and 1 | 4 | 1. recall@1: 1/2, 0, 1; over targets 2 of 4.
    assert means(report, "recall@1", "recall_micro@1", "hit_rate@1") == [0.5, 0.5, 2 / 3]
    # ndcg@2: 1 / (1 + 1/log2(3)) = .61315, 0, 1. mrr: (1 + 1/4 + 1) / 3.
    assert means(report, "ndcg@2", "mrr@500") == pytest.approx([1.61315 / 3, 0.75], abs=1e-5)
    # First places 3, 4, 4 of five candidates; first two 3 2, 4 3, 4 3.
    assert means(report, "coverage@1", "coverage@2") == [0.4, 0.6]
    # Rows of the first two: (30 + 2) / 2 = 16 and (400 + 30) / 2 = 215 twice.
    assert means(report, "mean_popularity@2") == pytest.approx([446 / 3])
    # Users are the sample: ann's recalls 1/2 and 0, bob's 1, mean .5: residuals -.5 and .5,
    # variance 2 * (.25 + .25) / 9 = .11111, as of n = .25 / .11111 = 2.25 cases, and
    # 1.959964^2 / 2.25 = 1.707315: sqrt(1.707315 * .25 + 1.707315^2 / 4) / 2.707315 = .39706.
    interval = report.metrics["recall@1"]
    assert interval["high"] == pytest.approx(0.5 + 0.39706, abs=1e-5)
    for name, value in report.metrics.items():
        if not name.startswith("mean_popularity"):
            assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1, name


@pytest.mark.parametrize(
    "num_items, name, expected",
    [
        # A middling question has 100 excluded: of 400 items it has 300 left, half are 150.
        (400, "recall_micro@100", "recall_micro@100"),
        (400, "recall@200", "recall@100"),
        # Of 300, 200 and 100; of 298, 99.
        (300, "recall_micro@100", "recall_micro@100"),
        (298, "recall_micro@100", "recall_micro@50"),
        (160, "hit_rate@500", "hit_rate@20"),
        (120, "precision@20", "precision@10"),
        # 18 are left: 9 are less than any k.
        (118, "recall_micro@100", "mrr@500"),
        (118, "ndcg@100", "ndcg@100"),  # looks at the order
        (118, "mrr@500", "mrr@500"),
    ],
)
def test_a_metric_that_can_tell(num_items, name, expected):
    # What is not a candidate anyhow is excluded from nothing.
    excluded = [[], [*range(100), 1500, 1501], list(range(1, 101)), list(range(110))]
    split = split_of(cases_of([[111]] * 4, exclude=excluded), num_items=num_items)
    assert evaluation.telling_metric(name, split) == expected


def test_cases_alone_have_no_coverage_and_popularity():
    split = random_split(20)
    popular = from_scores(lambda cases: np.tile(np.arange(NUM_ITEMS) * 1.0, (len(cases), 1)))
    alone, whole = evaluate(popular, split.cases), evaluate(popular, split)
    assert set(whole.metrics) - set(alone.metrics) == {f"coverage@{k}" for k in evaluation.KS}
    assert "item_popularity" not in alone.segments


def test_item_counts_from_the_dataset():
    rows = pd.DataFrame({"user_id": ["a"] * 5, "item_id": list("01231"), "timestamp": range(5)})
    items = pd.DataFrame({"item_id": list("0123")})
    dataset = Dataset("test", rows, items, pd.DataFrame({"user_id": ["a"]}))
    split = make_split(dataset_with_two(dataset), "loo", "test")
    best = from_scores(lambda cases: np.tile([4.0, 3.0, 2.0, 1.0], (len(cases), 1)))
    counted = evaluate(best, split, ks=(1,))
    again = evaluate(
        best, dataclasses.replace(split, item_counts=None), dataset_with_two(dataset), ks=(1,)
    )
    assert "mean_popularity@1" in counted.metrics
    assert counted.metrics == again.metrics


def dataset_with_two(dataset: Dataset) -> Dataset:
    """The same with a second user of items 3, 2, 0, 1."""
    more = pd.DataFrame({"user_id": ["b"] * 4, "item_id": list("3201"), "timestamp": range(4)})
    return Dataset(
        "test",
        pd.concat([dataset.interactions, more], ignore_index=True),
        dataset.items,
        pd.DataFrame({"user_id": ["a", "b"]}),
    )
