"""Evaluation: models whose figures are known beforehand, and answers that break the rules."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.data.splits import Split, make_split
from twotower.evaluation import evaluate as evaluation
from twotower.evaluation.evaluate import evaluate, from_scores
from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates

NUM_ITEMS = 2000


def cases_of(targets, exclude=None, history=None, users=None) -> EvalCases:
    """From rows of keys; every case is a user of its own unless `users` says otherwise."""
    n = len(targets)
    history = Ragged.from_rows(history or [[]] * n)
    return EvalCases(
        user_id=np.array(users or [f"u{row}" for row in range(n)], object),
        history=history,
        history_time=history,
        history_rating=Ragged(np.full(len(history.values), np.nan, np.float32), history.offsets),
        exclude=Ragged.from_rows(exclude or [[]] * n),
        targets=Ragged.from_rows(targets),
        time=np.full(n, -1),
    )


def split_of(cases: EvalCases, num_items=NUM_ITEMS, item_counts=None) -> Split:
    return Split(
        protocol="loo",
        part="test",
        seed=0,
        train=np.arange(3),
        candidates=np.arange(num_items),
        history="before",
        seen_excluded=True,
        cases=cases,
        item_counts=item_counts,
    )


def random_split(num_cases=400, seed=0) -> Split:
    """1 to 5 targets and up to 30 excluded items a case, disjoint."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(NUM_ITEMS)[:35] for _ in range(num_cases)]
    targets = [row[: rng.integers(1, 6)] for row in rows]
    excluded = [row[5 : 5 + rng.integers(0, 31)] for row in rows]
    return split_of(cases_of(targets, excluded, excluded))


def means(report, *names):
    return [report.metrics[name]["mean"] for name in names]


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


def by_hand():
    """Five items with 6, 0, 2, 30, 400 training rows; three cases of two users."""
    cases = cases_of(
        targets=[[1, 3], [0], [4]],
        exclude=[[0], [1], []],
        history=[[0], [1] * 12, []],
        users=["ann", "ann", "bob"],
    )
    return split_of(cases, num_items=5, item_counts=np.array([6, 0, 2, 30, 400]))


def answer_by_hand(cases, k):
    """ann: 3 2 1 4 and 4 3 2 0; bob: 4 3 2 1 0. All items that are not excluded."""
    keys = {0: [3, 2, 1, 4, -1], 1: [4, 3, 2, 0, -1], 2: [4, 3, 2, 1, 0]}
    rows = np.array(
        [keys[{(1, 3): 0, (0,): 1, (4,): 2}[tuple(row.tolist())]] for row in cases.targets]
    )
    counts = (rows >= 0).sum(1)
    scores = np.where(rows >= 0, -np.arange(5.0), -np.inf).astype(np.float32)
    return Candidates(rows[:, :k], scores[:, :k], np.minimum(counts, k))


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


def test_segments_by_hand():
    report = evaluate(answer_by_hand, by_hand(), ks=(1, 10))
    segments = report.segments
    # Histories of 1, 12 and 0 items.
    users = segments["history_length"]
    assert {name: row["num_cases"] for name, row in users.items()} == {"0": 1, "1-9": 1, "10-19": 1}
    # Rank 4 of the only target: 1 / 4. One user has no interval.
    assert users["10-19"]["mrr@500"] == {"mean": 0.25, "low": None, "high": None}
    assert set(users["0"]) == {"num_cases", "recall@10", "ndcg@10", "mrr@500"}
    # Targets 1, 3, 0, 4 have 0, 30, 6 and 400 training rows and ranks 3, 1, 4, 1.
    items = segments["item_popularity"]
    assert {name: row["num_targets"] for name, row in items.items()} == dict.fromkeys(
        ("0", "1-9", "10-99", "100-999"), 1
    )
    assert [row["recall_micro@1"]["mean"] for row in items.values()] == [0, 0, 1, 1]
    assert [row["recall_micro@10"]["mean"] for row in items.values()] == [1, 1, 1, 1]
    json.dumps({"metrics": report.metrics, "segments": report.segments}, allow_nan=False)


def test_segments_together_are_the_whole():
    split = random_split(300)
    counts = np.random.default_rng(2).integers(0, 200, NUM_ITEMS)
    split = dataclasses.replace(split, item_counts=counts)

    def score(cases):
        scores = np.random.default_rng(len(cases)).random((len(cases), NUM_ITEMS))
        scores[cases.targets.row_index, cases.targets.values] += 0.5
        return scores

    report = evaluate(from_scores(score), split)
    for kind, size, metric in (
        ("history_length", "num_cases", "recall@100"),
        ("item_popularity", "num_targets", "recall_micro@100"),
    ):
        rows = report.segments[kind].values()
        sizes = np.array([row[size] for row in rows])
        parts = np.array([row[metric]["mean"] for row in rows])
        assert len(sizes) > 2
        whole = report.metrics[metric]["mean"]
        assert (sizes * parts).sum() / sizes.sum() == pytest.approx(whole)
    assert report.segments["item_popularity"]["0"]["num_targets"] > 0  # cold items


def test_hidden_items_by_hand():
    # Items 0, 3 and 5 are hidden. Of the targets 0 | 3, 1 | 2 | 5 three are such items, of three
    # users. All get the order 4 3 2 1 0 5: ranks of hidden targets 5, 2, 6. Among themselves the
    # order is 3 0 5: ranks 2, 1, 3.
    cases = cases_of([[0], [3, 1], [2], [5]])
    split = split_of(cases, num_items=6, item_counts=np.array([0, 7, 8, 0, 0, 0]))
    split = dataclasses.replace(split, hidden=np.array([0, 3, 5]))
    scores = np.float32([1, 2, 3, 4, 5, 0])

    def among(keys):
        return from_scores(lambda asked: np.tile(scores, (len(asked), 1)), keys)

    report = evaluate(among(split.candidates), split, ks=(3, 5))
    found = report.segments["hidden_items"]
    assert found["num_targets"] == 3
    assert [found[f"recall_micro@{k}"]["mean"] for k in (3, 5)] == pytest.approx([1 / 3, 2 / 3])
    # Item 4 has no training row either, and nobody asks for it.
    assert report.segments["item_popularity"]["0"] == found
    hidden = evaluation.evaluate_hidden(among, split, report, k=2)
    assert hidden["recall@2 among hidden"]["mean"] == pytest.approx(2 / 3)
    assert hidden["chance@2 among hidden"] == pytest.approx(2 / 3)
    assert hidden["recall_micro@5 of hidden"] == found["recall_micro@5"]
    assert (hidden["num_items"], hidden["num_cases"]) == (3, 3)
    json.dumps(hidden, allow_nan=False)
    plain = dataclasses.replace(split, hidden=None)
    assert "hidden_items" not in evaluate(among(split.candidates), plain).segments
    with pytest.raises(ValueError, match="hides no items"):
        evaluation.evaluate_hidden(among, plain, report)


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
    # What is no candidate anyhow is excluded from nothing.
    excluded = [[], [*range(100), 1500, 1501], list(range(1, 101)), list(range(110))]
    split = split_of(cases_of([[111]] * 4, exclude=excluded), num_items=num_items)
    assert evaluation.telling_metric(name, split) == expected


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


def fixed(keys, scores=None, counts=None):
    """A recommender that always answers this row."""
    scores = -np.arange(len(keys)) if scores is None else scores

    def recommend(cases, k):
        n = len(cases)
        return Candidates(
            np.tile(keys, (n, 1)),
            np.tile(np.float32(scores), (n, 1)),
            np.full(n, len(keys) if counts is None else counts),
        )

    return recommend


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


def test_from_scores():
    scores = np.float32([[5, 4, 3, 2, 1], [1, 1, 2, 1, 0]])
    cases = cases_of([[0], [0]], exclude=[[0, 4], []])
    for batch_size in (1, 2):
        first = iter(scores)
        recommend = from_scores(
            lambda part: np.stack([next(first) for _ in range(len(part))]),  # noqa: B023
            candidates=np.array([0, 1, 3, 4]),
            batch_size=batch_size,
        )
        found = recommend(cases, 3)
        # The first may not have 0 and 4, item 2 is no candidate; ties go by key.
        assert found.keys.tolist() == [[1, 3, -1], [0, 1, 3]]
        assert found.counts.tolist() == [2, 3]
    assert from_scores(None)(cases.take([]), 3).keys.shape == (0, 3)


def test_from_scores_takes_the_exact_best():
    rng = np.random.default_rng(0)
    scores = rng.random((50, 300)).astype(np.float32)
    cases = cases_of([[0]] * 50)
    found = from_scores(lambda part: scores, batch_size=50)(cases, 20)
    np.testing.assert_array_equal(found.keys, np.argsort(-scores, axis=1)[:, :20])


def test_scores_that_are_none():
    cases = cases_of([[0], [1]])
    with pytest.raises(ValueError, match="1 NaN"):
        from_scores(lambda part: np.array([[1, 2], [np.nan, 1]]))(cases, 2)
    with pytest.raises(ValueError, match=r"expected scores \[2, num_items\]"):
        from_scores(lambda part: np.ones((3, 2)))(cases, 2)
