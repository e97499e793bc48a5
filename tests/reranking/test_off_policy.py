"""Off-policy estimates: by hand, against loops, and against the Open Bandit Pipeline."""

import functools

import numpy as np
import pytest

from twotower.evaluation.intervals import Z95
from twotower.reranking import off_policy
from twotower.reranking.off_policy import Logged
from twotower.reranking.reward_models import cross_fitted_means, cross_fitted_ridge, expectations

# Three requests. Weights: .5 / .25 = 2, .3 / .6 = .5, 0.
HAND = Logged(np.array([1.0, 4, 7]), np.array([0.25, 0.6, 0.5]), np.array([0.5, 0.3, 0.0]))


def made(num: int = 400, num_actions: int = 5, seed: int = 0) -> dict:
    """A log of a made-up policy, another policy, and a model's predictions."""
    rng = np.random.default_rng(seed)
    behaviour, target = rng.dirichlet(np.ones(num_actions), (2, num))
    behaviour = 0.9 * behaviour + 0.1 / num_actions
    actions = np.array([rng.choice(num_actions, p=row) for row in behaviour])
    rewards = rng.normal(actions, 1.0)
    row = np.arange(num)
    return {
        "rewards": rewards, "actions": actions, "target": target,
        "propensities": behaviour[row, actions], "probabilities": target[row, actions],
        "predictions": rng.normal(np.arange(num_actions), 0.5, (num, num_actions)),
    }  # fmt: skip


def estimates(log: dict) -> dict[str, dict]:
    logged = Logged(log["rewards"], log["propensities"], log["probabilities"])
    predicted, expected = expectations(log["predictions"], log["actions"], log["target"])
    return {
        "ips": off_policy.ips(logged),
        "snips": off_policy.snips(logged),
        "dm": off_policy.direct_method(expected),
        "dr": off_policy.doubly_robust(logged, predicted, expected),
    }


def test_three_requests_by_hand():
    ips, snips = off_policy.ips(HAND), off_policy.snips(HAND)
    # Values 2, 2, 0: mean 4/3, variance 4/3, standard error sqrt(4/9) = 2/3.
    assert ips == pytest.approx({"mean": 4 / 3, "low": 4 / 3 - Z95 * 2 / 3, "high": 2.639976})
    # 4 / 2.5 = 1.6. Residuals 2 * -.6, .5 * 2.4, 0: squares 2.88; sqrt(3/2 * 2.88) / 2.5.
    assert snips["mean"] == pytest.approx(1.6)
    assert snips["high"] - 1.6 == pytest.approx(Z95 * np.sqrt(1.5 * 2.88) / 2.5)
    # (2 + 3 + 4) / 3; then 2 + 2 * (1 - 2), 3 + .5 * (4 - 2), 4 + 0: mean of 0, 4, 4.
    assert off_policy.direct_method(np.array([2, 3, 4]))["mean"] == 3
    found = off_policy.doubly_robust(HAND, np.array([2, 2, 9]), np.array([2, 3, 4]))
    assert found["mean"] == pytest.approx(8 / 3)
    # 2.5^2 / (4 + .25).
    assert HAND.effective_size == pytest.approx(6.25 / 4.25)


def test_lists_by_hand():
    # List 1: 1 * .5/.25 + 1 * .2/.4 = 2.5; list 2, of one item: 1 * .1/.2 = .5.
    propensities, probabilities = [[0.25, 0.4], [0.2, 1]], [[0.5, 0.2], [0.1, 0]]
    found = off_policy.item_positions([[1, 1], [1, 0]], propensities, probabilities)
    assert found["mean"] == pytest.approx(1.5)
    assert found["high"] - 1.5 == pytest.approx(Z95 * 1.0)  # values 1 apart from the mean


def test_against_loops():
    log, found = made(), estimates(made())
    num = len(log["rewards"])
    ips, direct, robust, top, bottom = [], [], [], 0.0, 0.0
    for row in range(num):
        action, reward = log["actions"][row], log["rewards"][row]
        weight = log["probabilities"][row] / log["propensities"][row]
        model = sum(p * q for p, q in zip(log["target"][row], log["predictions"][row]))
        ips.append(weight * reward)
        direct.append(model)
        robust.append(model + weight * (reward - log["predictions"][row][action]))
        top, bottom = top + weight * reward, bottom + weight
    for name, values in (("ips", ips), ("dm", direct), ("dr", robust)):
        mean = sum(values) / num
        deviation = (sum((value - mean) ** 2 for value in values) / (num - 1)) ** 0.5
        assert found[name]["mean"] == pytest.approx(mean, rel=1e-9)
        assert found[name]["high"] == pytest.approx(mean + Z95 * deviation / num**0.5, rel=1e-9)
    assert found["snips"]["mean"] == pytest.approx(top / bottom, rel=1e-9)


def test_against_the_open_bandit_pipeline():
    reason = "pip install obp, in an environment of its own: it brings torch"
    ope = pytest.importorskip("obp.ope", reason=reason)
    log = made()
    inputs = {
        "reward": log["rewards"], "action": log["actions"], "pscore": log["propensities"],
        "action_dist": log["target"][:, :, None],
        "estimated_rewards_by_reg_model": log["predictions"][:, :, None],
    }  # fmt: skip
    theirs = {
        "ips": ope.InverseProbabilityWeighting(),
        "snips": ope.SelfNormalizedInverseProbabilityWeighting(),
        "dm": ope.DirectMethod(),
        "dr": ope.DoublyRobust(),
    }
    for name, found in estimates(log).items():
        expected = theirs[name].estimate_policy_value(**inputs)
        assert found["mean"] == pytest.approx(expected, rel=1e-9), name


def test_doubly_robust_by_its_parts():
    log = made()
    logged = Logged(log["rewards"], log["propensities"], log["probabilities"])
    zero = np.zeros(400)
    assert off_policy.doubly_robust(logged, zero, zero) == off_policy.ips(logged)
    # A model that knows the rewards leaves the direct method.
    exact = off_policy.doubly_robust(logged, log["rewards"], zero + 3)
    assert (exact["mean"], exact["low"], exact["high"]) == (3, 3, 3)
    # To add 10 to all rewards adds 10 to SNIPS, and not to IPS.
    more = Logged(log["rewards"] + 10, log["propensities"], log["probabilities"])
    assert off_policy.snips(more)["mean"] == pytest.approx(off_policy.snips(logged)["mean"] + 10)
    assert abs(off_policy.ips(more)["mean"] - off_policy.ips(logged)["mean"] - 10) > 0.05


def test_rows_of_one_user_are_one_observation():
    twice = [np.repeat(getattr(HAND, n), 2) for n in ("rewards", "propensities", "probabilities")]
    logged = Logged(*twice, clusters=np.repeat([7, 3, 5], 2))
    for estimate in (off_policy.ips, off_policy.snips):
        assert estimate(logged) == pytest.approx(estimate(HAND))
        assert estimate(logged, bootstrap=True)["mean"] == pytest.approx(estimate(HAND)["mean"])
    one = Logged(*twice, clusters=np.zeros(6, int))
    assert off_policy.ips(one)["low"] is None and off_policy.ips(one, bootstrap=True)["low"] is None


def test_the_bootstrap_leans_where_the_values_do():
    rng = np.random.default_rng(0)
    even, skewed = rng.standard_normal(400), rng.lognormal(0, 1.5, 400)
    normal, found = off_policy.interval(even), off_policy.bootstrap_interval(even)
    assert found["low"] == pytest.approx(normal["low"], abs=0.01)
    assert found["high"] == pytest.approx(normal["high"], abs=0.01)
    found = off_policy.bootstrap_interval(skewed)
    assert found["high"] - found["mean"] > 1.2 * (found["mean"] - found["low"])
    assert (
        found
        == off_policy.bootstrap_interval(skewed)
        != off_policy.bootstrap_interval(skewed, seed=1)
    )
    # By a loop, with the same definition: a resample's mean in its own standard errors.
    t = []
    for _ in range(2000):
        drawn = rng.choice(skewed, len(skewed))
        t.append((drawn.mean() - skewed.mean()) / (drawn.std(ddof=1) / 20))
    error = skewed.std(ddof=1) / 20
    low, high = skewed.mean() - np.percentile(t, [97.5, 2.5]) * error
    width = high - low
    assert abs(found["low"] - low) < 0.1 * width and abs(found["high"] - high) < 0.1 * width
    same = off_policy.bootstrap_interval(np.ones(3))
    assert (same["low"], same["high"]) == (1, 1)


def test_a_bootstrap_of_samples_without_rewards_is_no_narrower_than_the_log_allows():
    """A third of the samples has no reward at all, so nothing bounds the mean from above."""
    values = np.eye(1, 50)[0]
    assert off_policy.bootstrap_interval(values) == off_policy.interval(values)
    two = np.array([1.0, 0.0])
    assert off_policy.bootstrap_interval(two) == off_policy.interval(two)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"propensities": [0.5, 0]}, "1 of 2 propensities are 0 or less"),
        ({"propensities": [0.5, np.nan]}, "1 of 2 propensities are NaN"),
        ({"propensities": [0.5, 1.1]}, "propensities must lie within 0 and 1"),
        ({"probabilities": [0.5, -0.1]}, "probabilities must lie within 0 and 1"),
        ({"probabilities": [0.5, np.nan]}, "1 of 2 probabilities are NaN"),
        ({"rewards": [np.inf, 0]}, "1 of 2 rewards are NaN or infinite"),
        ({"probabilities": [0.5]}, r"expected probabilities \[n\] with n = 2"),
        ({"clusters": [1]}, r"clusters must be \[2\]"),
        ({"propensities": [0.5, 1e-200]}, "1 of 2 propensities are so small .* 1e-200"),
        ({"rewards": [], "propensities": [], "probabilities": []}, "The log is empty"),
        ({"rewards": [[1.0, 0.0]]}, r"expected rewards \[n\]"),
    ],
)
def test_what_a_log_refuses(changed, message):
    columns = {"rewards": [1, 0], "propensities": [0.5, 0.5], "probabilities": [0.5, 0.1]}
    columns = {name: np.array(values, float) for name, values in (columns | changed).items()}
    with pytest.raises(ValueError, match=message):
        Logged(**columns)


def test_what_estimates_refuse():
    none = Logged(np.array([1.0, 0]), np.array([0.5, 0.5]), np.zeros(2))
    for estimate in (off_policy.ips, off_policy.snips):
        with pytest.raises(ValueError, match="all 2 weights are 0"):
            estimate(none)
    with pytest.raises(ValueError, match=r"expected predicted \[n\] with n = 3"):
        off_policy.doubly_robust(HAND, np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="expected are NaN"):
        off_policy.direct_method(np.array([1, np.nan]))
    with pytest.raises(ValueError, match="The log is empty"):
        off_policy.direct_method(np.array([]))
    with pytest.raises(ValueError, match=r"three arrays \[num_lists, k\]"):
        off_policy.item_positions(np.zeros((2, 2)), np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"clusters must be \[3\]; got \[2\]"):
        off_policy.direct_method(np.ones(3), clusters=np.zeros(2))
    with pytest.raises(ValueError, match=r"clusters must be \[2\]; got \[4\]"):
        off_policy.item_positions(*np.ones((3, 2, 2)), clusters=np.arange(4))
    # One row has an estimate and no interval.
    assert off_policy.ips(Logged(np.array([2.0]), np.array([0.5]), np.array([0.25]))) == {
        "mean": 1, "low": None, "high": None,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["ridge", "means"])
def test_no_row_is_predicted_from_its_own_reward(kind):
    rng = np.random.default_rng(1)
    of_actions, actions = rng.standard_normal((40, 3, 2)), rng.integers(3, size=40)
    rewards = rng.standard_normal(40)
    shown = of_actions[np.arange(40), actions]
    if kind == "ridge":
        fit = functools.partial(cross_fitted_ridge, shown, of_actions=of_actions)
    else:
        fit = functools.partial(cross_fitted_means, actions, num_actions=3)
    clusters = np.arange(40) // 2
    before = fit(rewards=rewards, clusters=clusters)
    assert before.shape == (40, 3)
    rewards[10] += 100
    change = np.abs(fit(rewards=rewards, clusters=clusters) - before).max(1)
    # Its fold stays, with the other row of its cluster; all other folds change.
    assert change[10] == change[11] == 0 and (change > 0).sum() == 32


def test_reward_models_by_hand():
    # Two folds of two rows each; each is predicted from the other. Actions 0 and 1, strength 2.
    actions, rewards = np.array([0, 1, 0, 1]), np.array([1.0, 2, 3, 4])
    found = cross_fitted_means(actions, rewards, 2, strength=2, folds=2, clusters=[0, 0, 1, 1])
    # From rewards 3 and 4, mean 3.5: (3 + 7) / 3, (4 + 7) / 3. From 1 and 2: (1 + 3) / 3, 5 / 3.
    np.testing.assert_allclose(found, [[10 / 3, 11 / 3]] * 2 + [[4 / 3, 5 / 3]] * 2)
    features = np.array([[0.0], [2], [0], [2]])
    rewards = np.array([1.0, 5, 0, 0])
    found = cross_fitted_ridge(
        features, rewards, np.full((4, 1, 1), 3.0), 2.0, folds=2, clusters=[0, 0, 1, 1]
    )
    # Centred: x -1, 1 and y -2, 2, so the slope is 4 / (2 + 2) = 1, and at 3 it is 3 + (3 - 1).
    np.testing.assert_allclose(found[:, 0], [0, 0, 5, 5])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cross_fitted_means([0, 1], [1, 2], 2, folds=3), "the log has 2"),
        (lambda: cross_fitted_means([], [], 2), "the log has 0"),
        (lambda: cross_fitted_means([0, 2], [1, 2], 2, folds=2), "actions must lie within 0 and 1"),
        (lambda: cross_fitted_means([0, 1], [1, np.nan], 2), "without NaN"),
        (lambda: cross_fitted_ridge(np.zeros((2, 1)), [1, 2], np.zeros((2, 3, 2))), "of_actions"),
        (
            lambda: cross_fitted_ridge(np.full((2, 1), np.nan), [1, 2], np.zeros((2, 3, 1))),
            "features must be finite",
        ),
        (lambda: expectations(np.ones((1, 2)), [0], np.array([[0.5, 0.4]])), "must sum to 1"),
        (lambda: expectations(np.ones((1, 2)), [0], np.array([[1.5, -0.5]])), "0 or more"),
        (lambda: expectations(np.ones((1, 2)), [-1], np.array([[0.5, 0.5]])), "within 0 and 1"),
        (lambda: expectations(np.ones((1, 2)), [2], np.array([[0.5, 0.5]])), "within 0 and 1"),
        (lambda: expectations(np.array([[np.nan, 1]]), [0], np.ones((1, 2)) / 2), "without NaN"),
    ],
)
def test_what_reward_models_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
