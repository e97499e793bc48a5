"""Bandits: their lists, their propensities, what they learn, and what they refuse."""

import itertools

import numpy as np
import pandas as pd
import pytest

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.funnel import saving
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import ReciprocalRank
from twotower.funnel.sources.popularity import Popularity
from twotower.reranking.bandits import EpsilonGreedy, Thompson, slot_probabilities
from twotower.reranking.upper_bounds import CascadeUcb, LinUcb
from twotower.retrieval.candidates import Candidates

CATALOGUE = Catalogue(pd.DataFrame({"item_id": [str(key) for key in range(9)]}))


def ask(num: int, **more) -> Requests:
    return Requests.of(CATALOGUE, [[]] * num, **{"time": range(num), **more})


def listed(*rows, **columns) -> Candidates:
    """Lists of keys in this order, filled up to the longest."""
    width = max(map(len, rows))
    keys = np.array([[*row, *[-1] * (width - len(row))] for row in rows], np.int64)
    scores = np.where(keys < 0, -np.inf, -np.arange(width)).astype(np.float32)
    columns = {name: np.array(values, float) for name, values in columns.items()}
    return Candidates(keys, scores, (keys >= 0).sum(1), columns)


def bandits(**settings) -> list:
    return [
        EpsilonGreedy.empty(9, **settings), Thompson.empty(9, draws=5, **settings),
        CascadeUcb.empty(9, **settings), LinUcb.empty(np.eye(9), **settings),
    ]  # fmt: skip


@pytest.fixture(params=range(4), ids=["epsilon_greedy", "thompson", "cascade_ucb", "lin_ucb"])
def number(request) -> int:
    return request.param


def test_the_probability_of_each_place():
    # Three items, two slots, epsilon .3. Slot 1: the best .7 + .1, the others .1 each. Slot 2, of
    # the best: another came first (.2), then .7 + .15. Of the second: .8 * .85 + .1 * .15.
    expected = [[0.8, 0.17], [0.1, 0.695], [0.1, 0.135]]
    np.testing.assert_allclose(slot_probabilities(3, 2, 0.3), expected, atol=1e-15)


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_the_probability_of_each_place_is_that_of_all_lists(epsilon):
    found = np.zeros((5, 3))
    for places in itertools.permutations(range(5), 3):
        chance = 1.0
        for slot, item in enumerate(places):
            left = set(range(5)) - {*places[:slot]}
            chance *= (1 - epsilon) * (item == min(left)) + epsilon / len(left)
        found[places, range(3)] += chance
    np.testing.assert_allclose(slot_probabilities(5, 3, epsilon), found, atol=1e-12)


def test_epsilon_greedy_draws_as_often_as_it_says():
    found = EpsilonGreedy.empty(9, epsilon=0.5, slots=2, among=4)(
        ask(3000), listed(*[[8, 2, 4, 6, 1]] * 3000)
    )
    table = slot_probabilities(4, 2, 0.5)
    for slot, (rank, key) in itertools.product(range(2), enumerate([8, 2, 4, 6])):
        stands = found.keys[:, slot] == key
        assert abs(stands.mean() - table[rank, slot]) < 4 * np.sqrt(0.25 / 3000)
        np.testing.assert_allclose(found.columns["propensity"][stands, slot], table[rank, slot])
    assert (found.keys[:, 4] == 1).all()  # not among the first four
    assert np.isnan(found.columns["propensity"][:, 2:]).all()


def test_a_list_keeps_its_items_and_descends(number):
    given = listed([5, 3, 8, 1], [2], [], [7, 6], score=np.arange(16).reshape(4, 4))
    found = bandits(slots=3)[number](ask(4), given)
    assert [sorted(row[row >= 0]) for row in found.keys] == [[1, 3, 5, 8], [2], [], [6, 7]]
    assert found.counts.tolist() == [4, 1, 0, 2]
    assert (np.diff(found.scores[0]) < 0).all() and np.isneginf(found.scores[2]).all()
    # An item's columns move with it. A single candidate is certain, and so is no candidate.
    assert found.columns["score"][0][found.keys[0] == 8] == 2
    assert found.columns["propensity"][1].tolist() == [1, 0, 0, 0]
    assert not found.columns["propensity"][2].any()
    none = bandits()[number](ask(2), Candidates.empty(2))
    assert none.columns["propensity"].shape == (2, 0)


def test_without_feedback_greedy_and_bounds_keep_the_order():
    given = listed([5, 3, 8, 1])
    for stage in (EpsilonGreedy.empty(9, epsilon=0, slots=4), *bandits(slots=4)[2:]):
        found = stage(ask(1), given)
        np.testing.assert_array_equal(found.keys, given.keys)
        np.testing.assert_array_equal(found.scores, given.scores)
        assert (found.columns["propensity"] == 1).all()


@pytest.mark.parametrize("kind", [EpsilonGreedy, Thompson])
def test_a_request_gets_its_draw_whatever_is_beside_it(kind):
    stage = kind.empty(9, slots=3, prior=0.5, **({"epsilon": 0.9} if kind is EpsilonGreedy else {}))
    requests, given = ask(40, user_id=["a"] * 40), listed(*[[0, 1, 2, 3, 4, 5]] * 40)
    whole = stage(requests, given).keys
    np.testing.assert_array_equal(whole[7:8], stage(requests.take([7]), given.take([7])).keys)
    # 40 requests of one user at 40 times are 40 draws; so are other users, ids, and seeds.
    assert len(np.unique(whole, axis=0)) > 20
    for other in (
        {"user_id": [*map(str, range(40))], "time": [5] * 40},
        {"context": {"request_id": [*map(str, range(40))]}, "time": [5] * 40},
    ):
        assert len(np.unique(stage(ask(40, **other), given).keys, axis=0)) > 20
    stage.seed = 1
    assert (stage(requests, given).keys != whole).any()


def test_greedy_takes_the_largest_expected_reward():
    stage = EpsilonGreedy.empty(9, epsilon=0, slots=2, prior=0.1, strength=10)
    stage.update(np.array([8] * 10 + [3]), np.array([1] * 3 + [0] * 8))
    # Item 8: (1 + 3) / 20 = .2. Item 3: 1 / 11 = .09. The others: .1.
    assert stage(ask(1), listed([3, 5, 8, 1])).keys.tolist() == [[8, 5, 3, 1]]
    # Looked at half the time, five showings in place of ten: (1 + 3) / 15.
    half = EpsilonGreedy.empty(9)
    half.update(np.array([8] * 10), np.array([1] * 3 + [0] * 7), 0.5)
    clicks, others = half.posterior(listed([8]))
    assert (clicks[0, 0], others[0, 0]) == (4, 11)


def test_the_prior_can_be_a_rankers_column():
    stage = EpsilonGreedy.empty(2, epsilon=0, slots=2, prior_column="p", strength=4)
    stage.update(np.array([0, 0]), np.array([1, 0]))
    # (4 * .1 + 1) / 6 = .233 for item 0, which users saw; item 7 came later and has its prior.
    given = listed([1, 0, 7], p=[[0.2, 0.1, 0.3]])
    assert stage(ask(1), given).keys.tolist() == [[7, 0, 1]]
    with pytest.raises(ValueError, match=r"no column 'p'; they have \[\]"):
        stage(ask(1), listed([1]))
    with pytest.raises(ValueError, match="'p' must be finite"):
        stage(ask(1), listed([1], p=[[np.nan]]))
    with pytest.raises(ValueError, match="p must be probabilities"):
        stage(ask(1), listed([1], p=[[1.5]]))


def test_thompson_draws_from_the_posterior():
    stage = Thompson.empty(2, slots=2, prior=0.5, strength=2, draws=3000)
    stage.update(np.array([1]), np.array([1]))
    # Beta(1, 1) against Beta(2, 1): P(second > first) = integral of x * 2x = 2/3.
    found = stage(ask(1), listed([0, 1]))
    first = found.columns["propensity"][0, 0]
    assert abs((first if found.keys[0, 0] == 1 else 1 - first) - 2 / 3) < 0.03
    stage.draws = 3
    found = stage(ask(2000), listed(*[[0, 1]] * 2000))
    is_first = found.keys[:, 0] == 0
    assert abs(is_first.mean() - 1 / 3) < 0.03
    # The mean weight of an item that stands there in a third of the cases: 1 - (2/3)^4 = .802.
    assert abs((is_first / found.columns["propensity"][:, 0]).mean() - 0.802) < 0.05
    stage.draws = 0
    assert np.isnan(stage(ask(1), listed([0, 1])).columns["propensity"]).all()


def test_a_cascade_is_read_up_to_the_first_click():
    stage = CascadeUcb.empty(4, slots=2)
    stage.update(np.array([[3, 1, 2], [1, 2, -1]]), np.array([[0, 1, 1], [0, 0, 0]]))
    assert stage.seen.tolist() == [0, 2, 1, 1] and stage.clicks.tolist() == [0, 1, 0, 0]
    assert stage.rounds == 2
    # Bounds: unseen first; 1: 1/2 + sqrt(1.5 ln 2 / 2) = 1.22; 2: 0 + sqrt(1.5 ln 2) = 1.02.
    assert stage(ask(1), listed([3, 2, 1, 0])).keys.tolist() == [[0, 1, 3, 2]]


def test_lin_ucb_weighs_what_it_knows_against_what_it_does_not():
    stage = LinUcb.empty(np.eye(2), alpha=0.5, slots=1)
    stage.update(np.array([[1, 0]] * 8), np.array([1, 0] * 4))
    # A = diag(9, 1), b = (4, 0). Item 0: 4/9 + alpha / 3, item 1: alpha.
    assert stage(ask(1), listed([1, 0])).keys.tolist() == [[0, 1]]  # .61 > .5
    stage.alpha = 1.0
    assert stage(ask(1), listed([0, 1])).keys.tolist() == [[1, 0]]  # .78 < 1
    # The context is a column of the user with the item, then the item's vector.
    stage = LinUcb.empty(np.array([[2.0], [3.0]]), ["x"], slots=1)
    contexts = stage.contexts(listed([1, 5], x=[[7, 8]]))
    assert contexts.tolist() == [[[7, 3], [8, 0]]]
    # Looked at half the time: half the context. A = I + x x'/4 for x = (2, 4), b = x / 2.
    stage.update(np.array([[2, 4]]), np.array([1]), 0.5)
    assert stage.precision.tolist() == [[2, 2], [2, 5]] and stage.response.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"no column 'x'"):
        stage(ask(1), listed([0]))
    with pytest.raises(ValueError, match="without NaN"):
        stage.update(np.array([[np.nan, 0]]), np.array([1]))


def test_a_saved_bandit_goes_on_where_it_was(tmp_path):
    requests = ask(5)
    sources = {"popular": Inlet(Popularity(np.arange(9), np.arange(9, 0, -1, dtype=np.float32)))}
    for number, stage in enumerate(bandits(slots=3)):
        if isinstance(stage, CascadeUcb):
            stage.update(np.array([[4, 5]]), np.array([[0, 1]]))
        elif isinstance(stage, LinUcb):
            stage.update(np.eye(9)[:3], np.array([0, 1, 0]))
        else:
            stage.update(np.array([5, 5, 4]), np.array([1, 1, 0]))
        funnel = Funnel(sources, ReciprocalRank(), [stage])
        saving.save(funnel, tmp_path / str(number), "m")
        back = saving.load(tmp_path / str(number), None, "m")
        first, second = funnel(requests, 6), back(requests, 6)
        np.testing.assert_array_equal(first.keys, second.keys)
        for name, values in first.columns.items():
            np.testing.assert_array_equal(values, second.columns[name])
        assert back.stages[0].settings() == stage.settings()


def test_what_a_bandit_refuses(number):
    stage = bandits()[number]
    with pytest.raises(ValueError, match="A funnel has one bandit"):
        stage(ask(1), stage(ask(1), listed([1, 2])))
    with pytest.raises(ValueError, match="candidates of 1 requests for 2"):
        stage(ask(2), listed([1, 2]))
    with pytest.raises(ValueError, match="among must be slots or more; got 2 for 3"):
        bandits(slots=3, among=2)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epsilon": 1.5}, "epsilon must lie within 0 and 1; got 1.5"),
        ({"epsilon": np.nan}, "epsilon must lie within"),
        ({"prior": -0.1}, "prior must lie within 0 and 1"),
        ({"strength": 0}, "strength above 0"),
        ({"slots": 0}, "slots must be an integer of 1"),
    ],
)
def test_settings_out_of_bounds(settings, message):
    with pytest.raises(ValueError, match=message):
        EpsilonGreedy.empty(9, **settings)


@pytest.mark.parametrize(
    "vectors, precision, response, message",
    [
        (np.full((2, 1), np.nan), np.eye(1), np.zeros(1), "finite"),
        (np.ones((2, 1)), np.eye(2), np.zeros(1), r"precision \[1, 1\] and response \[1\]"),
        (np.ones((2, 1)), np.eye(1), np.zeros(2), r"precision \[1, 1\] and response \[1\]"),
        (np.ones((2, 0)), np.eye(0), np.zeros(0), "the context is empty"),
        (np.ones((2, 1)), np.zeros((1, 1)), np.zeros(1), "positive definite"),
    ],
)
def test_what_lin_ucb_cannot_solve(vectors, precision, response, message):
    with pytest.raises(ValueError, match=message):
        LinUcb(vectors, precision, response, slots=1, among=2)


@pytest.mark.parametrize("kind", [EpsilonGreedy, CascadeUcb])
@pytest.mark.parametrize(
    "clicks, seen, message",
    [
        ([1, 2, 3], [1, 2], r"clicks and seen \[num_items\]; got \[3\] and \[2\]"),
        ([np.nan, 0], [1, 1], "clicks must be finite"),
        ([0, 0], [-1, 1], "seen must be finite and 0 or more"),
    ],
)
def test_counts_that_are_none(kind, clicks, seen, message):
    with pytest.raises(ValueError, match=message):
        kind(np.array(clicks, float), np.array(seen, float))


def test_half_a_reward_counts_though_the_counts_were_whole_numbers():
    stage = EpsilonGreedy(np.zeros(2, int), np.zeros(2, int))
    stage.update(np.array([1]), np.array([0.5]))
    assert stage.clicks.tolist() == [0, 0.5]


@pytest.mark.parametrize(
    "feedback, message",
    [
        (([9], [1]), "those of the 9 items"),
        (([-1], [1]), "those of the 9 items"),
        (([1], [np.nan]), "rewards must lie within 0 and 1"),
        (([1], [1], 2.0), "examination must lie within"),
        (([1, 2], [1]), r"expected keys and rewards \[n\]"),
        (([0.5], [1]), "keys"),
    ],
)
def test_feedback_out_of_bounds(feedback, message):
    stage = EpsilonGreedy.empty(9)
    with pytest.raises(ValueError, match=message):
        stage.update(*map(np.array, feedback))
    assert not stage.seen.any() and not stage.clicks.any()
