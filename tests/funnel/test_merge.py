"""Pools and merges, by hand; weights that are fitted find the source that knows."""

import numpy as np
import pytest
from made_up_parts import Always, ask

from twotower.data.cases import EvalCases
from twotower.funnel.merge import Quotas, ReciprocalRank, WeightedSum
from twotower.funnel.pool import Pool
from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates


def found_of(**answers):
    requests = ask([])
    return requests, {name: Always(*keys)(requests, 9) for name, keys in answers.items()}


def test_a_pool_of_several_requests_and_short_rows():
    left = Candidates.rank(np.array([[5, 3], [2, -1]]), np.float32([[9, 8], [7, 6]]), k=2)
    right = Candidates.rank(np.array([[3, 7, 5], [-1, -1, -1]]), np.ones((2, 3), np.float32), k=3)
    pool = Pool.of({"left": left, "right": right})
    assert pool.keys.tolist() == [[3, 5, 7], [2, -1, -1]]
    assert pool.ranks.tolist() == [[[2, 1, 0], [1, 0, 0]], [[1, 2, 3], [0, 0, 0]]]
    assert pool.scores[0].tolist()[0][:2] == [8, 9] and np.isnan(pool.scores[0, 0, 2])
    with pytest.raises(ValueError, match="the same requests; got"):
        Pool.of({"a": left, "b": right.take([0])})
    with pytest.raises(ValueError, match="the same requests"):
        Pool.of({})


def test_keys_may_be_as_large_as_those_of_a_large_catalogue():
    keys = np.array([[2**40, 3, 2**40 - 1]])
    pool = Pool.of({"a": Candidates.rank(keys, np.float32([[3, 2, 1]]), k=3)})
    assert pool.keys.tolist() == [[3, 2**40 - 1, 2**40]] and pool.ranks.tolist() == [[[2, 3, 1]]]


def test_more_requests_than_are_merged_at_once():
    requests = ask(*[[]] * 300)
    found = {"a": Always(4, 2)(requests, 2), "b": Always(2)(requests, 2)}
    merged = ReciprocalRank()(requests, found, 2)
    assert merged.keys.tolist() == [[2, 4]] * 300


def test_quotas_interleave_and_fill_up():
    requests, found = found_of(a=[0, 1, 2, 3, 4], b=[9, 0, 8], c=[7])
    # rank / quota: 0 .5, 1 1, 2 1.5, 3 2, 4 2.5; 9 1, (0 2), 8 3; c has no quota.
    merged = Quotas({"a": 2, "b": 1})(requests, found, 9)
    assert merged.keys.tolist() == [[0, 1, 9, 2, 3, 4, 8, -1, -1]]
    assert merged.scores[0, :3].tolist() == [-0.5, -1, -1]
    # Where no source with a quota found anything the others fill the list, as a fallback does.
    requests, found = found_of(a=[], b=[], c=[7, 3], d=[5])
    assert Quotas({"a": 2, "b": 1})(requests, found, 3).keys.tolist() == [[5, 7, 3]]


def test_where_only_sources_without_a_weight_answer_their_order_counts():
    """Scores of 0 would leave the order of the keys, as when the only weighted source is late."""
    requests, found = found_of(a=[], b=[7, 3, 5])
    for weights in ({"b": 0}, {"a": 2, "b": 0}):
        assert ReciprocalRank(weights=weights)(requests, found, 3).keys.tolist() == [[7, 3, 5]]
    requests, found = found_of(a=[9], b=[7, 3])
    assert ReciprocalRank(weights={"b": 0})(requests, found, 1).keys.tolist() == [[9]]


def test_quotas_are_finite():
    with pytest.raises(ValueError, match="quotas must be positive and finite"):
        Quotas({"a": np.inf})


def test_the_first_of_a_source_can_be_kept():
    requests, found = found_of(a=[0, 1, 2, 3], b=[8, 9])
    merge = WeightedSum(["a", "b"], [[1, 0]])
    assert merge(requests, found, 3).keys.tolist() == [[0, 1, 2]]
    kept = merge(requests, found, 3, {"b": 1})
    assert kept.keys.tolist() == [[0, 1, 8]] and kept.columns["b_rank"].tolist() == [[0, 0, 1]]
    assert [*kept.columns] == ["a_rank", "b_rank", "a_score", "b_score"]
    assert kept.scores[0, 2] == 0 and kept.counts.tolist() == [3]
    assert set(merge(requests, found, 1, {"b": 2}).keys[0]) <= {8, 9}


def test_weights_of_reciprocal_ranks():
    requests, found = found_of(a=[0, 1], b=[1, 0])
    assert ReciprocalRank(weights={"b": 2})(requests, found, 2).keys.tolist() == [[1, 0]]
    assert ReciprocalRank(weights={"b": 0.5})(requests, found, 2).keys.tolist() == [[0, 1]]


def test_reciprocal_ranks_without_a_constant():
    requests, found = found_of(a=[0], b=[1, 2])  # b has no rank for 0: nothing is divided by it
    with np.errstate(all="raise"):
        merged = ReciprocalRank(0)(requests, found, 3)
    assert merged.keys.tolist() == [[0, 1, 2]] and merged.scores.tolist() == [[1, 1, 0.5]]


def test_a_weighted_sum_by_hand():
    requests = ask([], [1, 2, 3])
    a = Candidates.rank(np.array([[0, 1, 2]] * 2), np.float32([[6, 3, 0]] * 2), k=3)
    b = Candidates.rank(np.array([[5, 2]] * 2), np.float32([[0.1, 0.1]] * 2), k=2)
    merge = WeightedSum(["a", "b"], [[1, 0], [0, 1]], bounds=[0, 3])
    merged = merge(requests, {"a": a, "b": b}, 4)
    # a: standard deviation of 6, 3, 0 is 6 ** .5. b: equal scores, which say that it found them.
    assert merged.keys.tolist() == [[0, 1, 2, 5], [2, 5, 0, 1]]
    assert merged.scores[0].tolist() == pytest.approx([6**0.5, 6**0.5 / 2, 0, 0])
    assert merged.scores[1].tolist() == [1, 1, 0, 0]
    # A source that is missing, or that it was not fitted with, counts nothing.
    assert merge(requests, {"a": a, "other": b}, 1).keys.tolist() == [[0], [0]]


def test_all_sources_weigh_alike_where_none_with_a_weight_found_anything():
    # Both requests have no history. Only `model` has a weight, and it knows nothing of the second.
    requests = ask([], [])
    model = Candidates.rank(np.array([[4, 5], [-1, -1]]), np.float32([[2, 1], [0, 0]]), k=2)
    popular = Candidates.rank(np.array([[7, 4, 2]] * 2), np.float32([[6, 3, 0]] * 2), k=3)
    merge = WeightedSum(["model", "popular"], [[0.5, 0]])
    merged = merge(requests, {"model": model, "popular": popular}, 3)
    # model: z of 2 and 1 are 2 and 0. popular: the standard deviation of 6, 3, 0 is 6 ** .5.
    assert merged.keys.tolist() == [[4, 2, 5], [7, 4, 2]]
    assert merged.scores[0].tolist() == [1, 0, 0]
    assert merged.scores[1].tolist() == pytest.approx([6**0.5, 6**0.5 / 2, 0])
    # A source that failed or is late has found nothing, too.
    assert merge(requests, {"popular": popular}, 1).keys.tolist() == [[7], [7]]


def test_fitted_weights_believe_the_source_that_knows():
    rng = np.random.default_rng(0)
    num_cases, num_items = 400, 40
    requests = ask(*[[0]] * 200, *[[0, 1, 2]] * 200)
    # Item scores of `knows` are the true logits, of half the cases; of the others those of `later`.
    logits = rng.normal(size=(2, num_cases, num_items)).astype(np.float32)
    true = np.where(np.arange(num_cases)[:, None] < 200, logits[0], logits[1])
    odds = np.exp(3 * true)
    targets = [rng.choice(num_items, p=row / row.sum()) for row in odds]
    found = {
        name: Candidates.of_scores(values.copy(), num_items)
        for name, values in zip(("knows", "later", "noise"), (*logits, rng.normal(size=odds.shape)))
    }
    cases = EvalCases(
        **requests._columns(), targets=Ragged.from_rows([[target] for target in targets])
    )
    merge = WeightedSum.fit(found, cases, bounds=[0, 3], pull=0.1)
    (few_knows, few_later, few_noise), (many_knows, many_later, many_noise) = merge.weights
    # z is in standard deviations, which are 1: the true weights are 3 and 0.
    assert [few_knows, many_later] == pytest.approx([3, 3], abs=0.5)
    assert max(few_later, few_noise, many_knows, many_noise) < 0.3
    assert merge.weights.min() >= 0 and merge.names == ["knows", "later", "noise"]
    # Buckets without a case have the weights of all.
    far = WeightedSum.fit(found, cases, bounds=[0, 3, 99])
    np.testing.assert_allclose(far.weights[2], WeightedSum.fit(found, cases).weights[0], atol=1e-5)
    nothing = {"a": Candidates.empty(num_cases, 2)}
    with pytest.raises(ValueError, match="targets among what the sources found"):
        WeightedSum.fit(nothing, cases)


def test_kept_items_are_in_the_list_even_without_a_score():
    # The left source finds 9 8 7 and the right one 5 4 3, each best first. The merge scores the
    # left ones alone: 7 > 9 > 8.
    left = Candidates.rank(np.array([[9, 8, 7]]), np.float32([[3, 2, 1]]), 3)
    right = Candidates.rank(np.array([[5, 4, 3]]), np.float32([[3, 2, 1]]), 3)
    pool = Pool.of({"left": left, "right": right})
    assert pool.keys.tolist() == [[3, 4, 5, 7, 8, 9]]
    scores = np.float32([[-np.inf, -np.inf, -np.inf, 6, -2, 5]])
    for k, keep, expected in (
        (4, {"right": 2}, [7, 9, 5, 4]),
        (4, {"right": 2, "left": 2}, [9, 8, 5, 4]),
        # Of more than there are places for, the best ranks stay: 9 and 5, then 8 and 4.
        (2, {"right": 3}, [5, 4]),
        (3, {"right": 3, "left": 1}, [9, 5, 4]),
        (9, {"right": 1, "left": 9}, [7, 9, 8, 5, -1, -1, -1, -1, -1]),
        (4, {"neither": 3}, [7, 9, 8, -1]),
    ):
        found = pool.best(scores, k, keep)
        assert found.keys[0].tolist() == expected, (k, keep)
        assert np.isfinite(found.scores[found.valid]).all()
        assert (np.diff(found.scores[found.valid]) <= 0).all()


def test_the_best_of_a_pool_are_those_that_a_sort_finds():
    rng = np.random.default_rng(0)
    keys = np.sort(rng.permuted(np.tile(np.arange(30), (20, 1)), axis=1)[:, :12], axis=1)
    found = {
        name: Candidates.rank(rng.permuted(keys, axis=1), rng.normal(size=(20, 12)), k=9)
        for name in ("a", "b")
    }
    pool = Pool.of(found)
    scores = rng.integers(0, 4, pool.keys.shape).astype(np.float32)  # many ties
    columns = {"a_rank": pool.ranks[0], "b_rank": pool.ranks[1], "a_score": pool.scores[0]}
    for k in (3, 40):
        best, expected = pool.best(scores, k), Candidates.rank(pool.keys, scores, k, columns)
        assert best.keys.tolist() == expected.keys.tolist()
        assert best.scores.tolist() == expected.scores.tolist()
        valid = best.valid
        for name in columns:
            np.testing.assert_array_equal(best.columns[name][valid], expected.columns[name][valid])
