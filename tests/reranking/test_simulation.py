"""From one end to the other: a bandit's lists, their log, and estimates that meet the truth."""

import numpy as np
import pytest

from twotower.data import synthetic
from twotower.reranking import off_policy
from twotower.reranking.bandits import EpsilonGreedy, slot_probabilities
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
