"""Metrics against hand-worked values and a metrics library."""

import tracemalloc

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, P, R, Success, nDCG

from twotower.evaluation import metrics
from twotower.evaluation.intervals import interval
from twotower.evaluation.metrics import NOT_FOUND, TargetRanks

# Two users. The first has targets 7 and 9 and is answered 5, 7, 3, 9; the second has the targets
# 1, 2, 4 and is answered 2, 8, 6, 5. So the ranks are 2, 4 | -, 1, -.
KEYS = np.array([[5, 7, 3, 9], [2, 8, 6, 5]])
SCORES = np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
TARGETS, OFFSETS = np.array([7, 9, 1, 2, 4]), np.array([0, 2, 5])


def two_users():
    return metrics.target_ranks(KEYS, SCORES, np.array([4, 4]), TARGETS, OFFSETS, asked=5)


def ranks_of(keys, scores, targets, asked=None, counts=None):
    """Ranks in one answer; full by default."""
    asked = len(keys) if asked is None else asked
    counts = len(keys) if counts is None else counts
    return metrics.target_ranks(
        np.array([keys]),
        np.array([scores], np.float32),
        np.array([counts]),
        np.array(targets),
        np.array([0, len(targets)]),
        asked,
    ).ranks.tolist()


def test_ranks_of_two_users():
    assert two_users().ranks.tolist() == [2, 4, NOT_FOUND, 1, NOT_FOUND]


def test_two_users_by_hand():
    ranks = two_users()
    # k = 2: the first user has 1 of 2 targets, the second 1 of 3.
    np.testing.assert_allclose(metrics.recall(ranks, 2), [1 / 2, 1 / 3])
    np.testing.assert_allclose(metrics.recall(ranks, 4), [1.0, 1 / 3])
    np.testing.assert_allclose(metrics.precision(ranks, 4), [2 / 4, 1 / 4])
    np.testing.assert_allclose(metrics.hit_rate(ranks, 1), [0, 1])
    np.testing.assert_allclose(metrics.reciprocal_rank(ranks), [1 / 2, 1])
    # k = 4: DCG 1/log2(3) + 1/log2(5) = .63093 + .43068 = 1.06161, ideal of two targets
    # 1 + .63093 = 1.63093, so .65092. Second: 1 / (1 + .63093 + .5) = 1 / 2.13093 = .46928.
    np.testing.assert_allclose(metrics.ndcg(ranks, 4), [0.65092, 0.46928], atol=1e-5)
    # k = 1: the ideal has one place only, so the second user's hit at rank 1 is perfect.
    np.testing.assert_allclose(metrics.ndcg(ranks, 1), [0, 1])


def test_recall_micro_weighs_by_targets():
    ranks = two_users()
    # k = 4: 3 hits of 5 targets; the mean over users is (1 + 1/3) / 2 = 2/3.
    recall = metrics.recall(ranks, 4)
    assert interval(recall, ranks.lengths)["mean"] == pytest.approx(3 / 5)
    assert interval(recall)["mean"] == pytest.approx(2 / 3)


def test_mrr_looks_no_further_than_k():
    ranks = TargetRanks(np.array([501, 500]), np.array([0, 1, 2]))
    np.testing.assert_allclose(metrics.reciprocal_rank(ranks, 500), [0, 1 / 500])


def test_a_case_without_targets_scores_zero():
    ranks = TargetRanks(np.array([1]), np.array([0, 0, 1]))
    for values in (metrics.recall(ranks, 5), metrics.ndcg(ranks, 5), metrics.hit_rate(ranks, 5)):
        assert values.tolist() == [0, 1]


@pytest.mark.parametrize(
    "name, scores, targets, asked, expected",
    [
        ("no tie", [4, 3, 2, 1], [1], 4, [2]),
        # Items 1 and 2 tie on ranks 2 and 3: the target takes 3, whichever it is.
        ("tie of two", [4, 3, 3, 1], [1], 4, [3]),
        ("tie of two, already last", [4, 3, 3, 1], [2], 4, [3]),
        # Both are targets, so one is on rank 2: nobody else can be.
        ("tie of targets", [4, 3, 3, 1], [1, 2], 4, [2, 3]),
        ("three tie, two are targets", [3, 3, 3, 1], [0, 2], 4, [2, 3]),
        # The answer is full, so the tie on its last places may go on behind it.
        ("tie at the end of a full answer", [4, 3, 1, 1], [2], 4, [NOT_FOUND]),
        ("last place of a full answer", [4, 3, 2, 1], [3], 4, [NOT_FOUND]),
        # Five were asked for and four came: there is nothing behind.
        ("tie at the end of all there is", [4, 3, 1, 1], [2], 5, [4]),
        ("constant, full", [1, 1, 1, 1], [0], 4, [NOT_FOUND]),
        ("two ties side by side", [2, 2, 1, 1], [0, 2], 5, [2, 4]),
    ],
)
def test_targets_stand_last_in_their_tie(name, scores, targets, asked, expected):
    assert ranks_of([0, 1, 2, 3], scores, targets, asked) == expected


def test_places_behind_counts_are_no_answers():
    # Two of four places are filled; key 9 behind them is not a hit, and -inf ties with nothing.
    assert ranks_of([3, 9, -1, -1], [2, 1, -np.inf, -np.inf], [9, 3], 4, counts=2) == [2, 1]
    assert ranks_of([3, 9, -1, -1], [2, 1, -np.inf, -np.inf], [9, 3], 4, counts=1) == [
        NOT_FOUND,
        1,
    ]


def test_empty_answers_and_no_cases():
    assert ranks_of([-1, -1], [-np.inf, -np.inf], [4], 2, counts=0) == [NOT_FOUND]
    none = metrics.target_ranks(
        np.empty((0, 5), int),
        np.empty((0, 5)),
        np.empty(0, int),
        np.empty(0, int),
        np.array([0]),
        5,
    )
    assert metrics.recall(none, 5).tolist() == []


def random_answers(seed: int, num_cases: int = 60, num_items: int = 40):
    """Shuffled full rankings and 1 to 8 targets a case."""
    rng = np.random.default_rng(seed)
    keys = rng.permuted(np.tile(np.arange(num_items), (num_cases, 1)), axis=1)
    scores = np.sort(rng.random((num_cases, num_items)))[:, ::-1]
    rows = [rng.permutation(num_items)[: rng.integers(1, 9)] for _ in range(num_cases)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return keys, scores, np.concatenate(rows), offsets


@pytest.mark.parametrize("k", [1, 5, 20, 40])
def test_equal_to_ir_measures(k):
    keys, scores, targets, offsets = random_answers(seed=k)
    n, m = keys.shape
    ranks = metrics.target_ranks(keys, scores, np.full(n, m), targets, offsets, asked=m + 1)
    qrels = [
        ir_measures.Qrel(str(case), str(key), 1)
        for case, key in zip(np.repeat(np.arange(n), np.diff(offsets)), targets)
    ]
    run = [
        ir_measures.ScoredDoc(str(case), str(keys[case, place]), float(scores[case, place]))
        for case in range(n)
        for place in range(m)
    ]
    measures = {
        R @ k: metrics.recall(ranks, k),
        P @ k: metrics.precision(ranks, k),
        nDCG @ k: metrics.ndcg(ranks, k),
        RR @ k: metrics.reciprocal_rank(ranks, k),
        Success @ k: metrics.hit_rate(ranks, k),
    }
    theirs = {
        (value.measure, int(value.query_id)): value.value
        for value in ir_measures.iter_calc(list(measures), qrels, run)
    }
    assert len(theirs) == 5 * n
    for measure, ours in measures.items():
        np.testing.assert_allclose(ours, [theirs[measure, case] for case in range(n)], atol=1e-12)


def test_mean_popularity_by_hand():
    # Items 0..3 with 10, 20, 30, 40 rows. First case: (20 + 40) / 2; second: one item; third: none.
    keys = np.array([[1, 3, 0], [2, -1, -1], [-1, -1, -1]])
    found = metrics.mean_popularity(keys, np.array([10, 20, 30, 40]), k=2)
    assert found.tolist() == [30, 30, 0]


def test_coverage_by_hand():
    keys = np.array([[0, 1, 9], [1, 2, 8], [1, -1, -1]])
    # Of the candidates 0..4, the first two places show 0, 1, 2. Leaving out the first case loses
    # 0, the second 2, the third nothing: lost shares .2, .2, 0 with mean .1333, so
    # se^2 = 2/3 * (.0667^2 + .0667^2 + .1333^2) = 2/3 * .026667 = .017778, se = .13333.
    found = metrics.coverage(keys, np.arange(5), k=2)
    assert found["mean"] == pytest.approx(0.6)
    assert found["high"] - found["mean"] == pytest.approx(1.959964 * 0.133333, abs=1e-5)
    assert metrics.coverage(keys, np.arange(5), k=3)["mean"] == pytest.approx(0.6)


def test_coverage_stays_a_share():
    # Two users show all four items. Without the first 3/4 are lost, without the other 1/4, 1/2 on
    # average: se^2 = 1/2 * 2 * (1/4)^2.
    keys = np.array([[0, 1, 2], [3, -1, -1]])
    found = metrics.coverage(keys, np.arange(4), k=3)
    assert found == {"mean": 1.0, "low": pytest.approx(1 - 1.959964 / 4), "high": 1.0}
    # Two of 40, shown by the first of three users. Lost: .05, 0, 0, so that se is .0333.
    found = metrics.coverage(np.array([[0, 1], [-1, -1], [-1, -1]]), np.arange(40), k=2)
    assert found["mean"] == 0.05 and found["low"] == 0.0


def test_coverage_is_the_jackknife_over_clusters():
    rng = np.random.default_rng(3)
    keys, clusters = rng.integers(0, 300, (40, 5)), rng.integers(0, 9, 40)
    candidates = np.arange(300)
    left_out = [len(np.unique(keys[clusters != cluster])) / 300 for cluster in np.unique(clusters)]
    m = len(left_out)
    se = np.sqrt((m - 1) / m * np.square(left_out - np.mean(left_out)).sum())
    found = metrics.coverage(keys, candidates, 5, clusters)
    assert found["mean"] == len(np.unique(keys)) / 300
    assert found["high"] - found["mean"] == pytest.approx(1.959964 * se)


def test_coverage_of_a_single_user_has_no_interval():
    assert metrics.coverage(np.array([[1]]), np.array([1, 2]), 1) == {
        "mean": 0.5,
        "low": None,
        "high": None,
    }


def test_metrics_of_all_answers_take_little_memory():
    """Answers of 20,000 users are 80 MB as numbers of 8 bytes."""
    keys = np.random.default_rng(0).integers(0, 50, (20_000, 500), dtype=np.int32)
    popularity, candidates = np.arange(50), np.arange(50)
    tracemalloc.start()
    try:
        found = metrics.mean_popularity(keys, popularity, 500)
        covered = metrics.coverage(keys, candidates, 500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6
    np.testing.assert_allclose(found, popularity[keys].mean(1))
    assert covered["mean"] == 1.0
