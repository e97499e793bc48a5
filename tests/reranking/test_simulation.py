"""Against a known truth: a bandit's lists and their log, estimates, intervals, and A/B tests."""

import numpy as np
import pytest

from twotower.data import synthetic
from twotower.evaluation.intervals import share_interval
from twotower.reranking import experiments, off_policy
from twotower.reranking.bandits import EpsilonGreedy, slot_probabilities
from twotower.reranking.reward_models import cross_fitted_ridge, expectations
from twotower.reranking.simulation import Simulation


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation.of(synthetic.generate(synthetic.SMALL), num_items=20, num_positions=4)


def test_the_log_of_a_bandit_tells_what_another_one_would_earn(simulation):
    rng = np.random.default_rng(0)
    users = rng.integers(simulation.num_users, size=6000)
    scores = simulation.attraction + 0.1 * rng.standard_normal(simulation.attraction.shape)
    logging = EpsilonGreedy.empty(20, epsilon=0.5, slots=4)
    shown = logging(simulation.requests(users), simulation.candidates(users, scores)).head(4)
    clicks = simulation.clicks(users, shown.keys, rng)
    # The target ranks by the truth, with a little exploration.
    best = np.argsort(-simulation.attraction, axis=1)
    table = slot_probabilities(20, 4, 0.1)
    target = np.zeros((simulation.num_users, 20, 4))
    np.put_along_axis(target, best[:, :, None], table[None], axis=1)
    truth = simulation.value(users, target[users]).mean()
    of_shown = target[users[:, None], shown.keys, np.arange(4)]
    found = off_policy.item_positions(clicks, shown.columns["propensity"], of_shown)
    assert found["low"] < truth < found["high"]
    # The log's mean is not the target's.
    assert found["low"] > clicks.sum(1).mean()
    logged = off_policy.Logged(clicks[:, 0], shown.columns["propensity"][:, 0], of_shown[:, 0])
    first = simulation.value(users, target[users][:, :, :1]).mean()
    for estimate in (off_policy.ips(logged), off_policy.snips(logged)):
        assert estimate["low"] < first < estimate["high"]


def one_item(scores: np.ndarray, epsilon: float) -> np.ndarray:
    """Epsilon-greedy with one slot, by scores `[num_users, num_items]`."""
    found = np.full(scores.shape, epsilon / scores.shape[1])
    found[np.arange(len(scores)), scores.argmax(1)] += 1 - epsilon
    return found


@pytest.fixture(scope="module")
def replications(simulation) -> dict[str, np.ndarray]:
    """Name of an estimator -> error and whether the interval covers, `[num_logs, 2]`."""
    rng = np.random.default_rng(0)
    minutes = simulation.log_minutes[:, :10]
    behaviour = one_item(minutes + rng.normal(0, 0.5, minutes.shape), 0.5)
    target = one_item(minutes, 0.1)
    truth = (target * minutes).sum(1).mean()
    found: dict[str, list] = {}
    for _ in range(400):
        users = rng.integers(len(minutes), size=1000)
        actions = (np.cumsum(behaviour[users], axis=1) > rng.random((1000, 1))).argmax(1)
        rewards = simulation.minutes(users, actions, rng)
        logged = off_policy.Logged(rewards, behaviour[users, actions], target[users, actions])
        features = simulation.features[users][:, :10]
        model = cross_fitted_ridge(features[np.arange(1000), actions], rewards, features)
        predicted, expected = expectations(model, actions, target[users])
        for name, made in (
            ("ips", off_policy.ips(logged)),
            ("snips", off_policy.snips(logged)),
            ("dr", off_policy.doubly_robust(logged, predicted, expected)),
        ):
            covers = made["low"] <= truth <= made["high"]
            found.setdefault(name, []).append([made["mean"] - truth, covers])
    return {name: np.array(values) for name, values in found.items()}


def test_doubly_robust_is_closer_than_ips_in_nine_of_ten_logs(replications):
    errors = {name: np.abs(found[:100, 0]) for name, found in replications.items()}
    assert (errors["dr"] < errors["ips"]).sum() >= 90
    # Beside SNIPS, which does not mind where rewards begin, the model itself is what is gained.
    assert np.sqrt((errors["dr"] ** 2).mean()) < 0.8 * np.sqrt((errors["snips"] ** 2).mean())


@pytest.mark.parametrize("name", ["ips", "snips", "dr"])
def test_intervals_cover_the_truth_in_95_of_100_logs(replications, name):
    error, covers = replications[name].T
    assert 0.93 <= covers.mean() <= 0.97
    assert abs(error.mean()) < 3 * error.std() / np.sqrt(len(error)) + 0.002  # SNIPS has some bias


def test_of_tests_without_an_effect_one_in_twenty_finds_one(simulation):
    rng = np.random.default_rng(0)
    # Clicks of a user on the first four items, for as many lists as the user asks for.
    rates = simulation.attraction[:, :4] @ simulation.examination
    rates = np.tile(rates, 2) * rng.lognormal(2, 0.7, 2 * len(rates))
    ids = np.arange(len(rates)).astype(str)
    finds, narrower = [], []
    for run in range(500):
        before, values = rng.poisson(rates, (2, len(rates)))
        halves = experiments.Experiment(f"a/a {run}", {"control": 0.5, "treatment": 0.5})
        treated = halves.assign(ids) == "treatment"
        row = []
        for adjusted in (values, experiments.cuped(values, before)):
            found = experiments.difference(adjusted[treated], adjusted[~treated])
            finds.append(not found["low"] <= 0 <= found["high"])
            row.append(found["high"] - found["low"])
        narrower.append((row[1] / row[0]) ** 2)
    rate = share_interval(np.array(finds))
    assert rate["low"] < 0.05 < rate["high"]
    # How much a user clicks in one period tells much of the next.
    assert np.mean(narrower) < 0.5
