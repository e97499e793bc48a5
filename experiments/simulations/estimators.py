"""How far off-policy estimates are from the truth, and whether their 95% intervals cover it."""

import functools

import numpy as np
from absl import logging

from twotower.data.synthetic import Synthetic
from twotower.evaluation.intervals import interval, share_interval
from twotower.reranking import off_policy
from twotower.reranking.bandits import EpsilonGreedy, slot_probabilities
from twotower.reranking.reward_models import cross_fitted_means, cross_fitted_ridge, expectations
from twotower.reranking.simulation import Simulation

# A log shows one of so many items in each row. The target policy explores with this probability.
ACTIONS, TARGET = 10, 0.1
# A log of whole lists: items, length of a list, and rows.
ITEMS, SLOTS, LISTS = 20, 5, 500
# Logs in which errors are compared one by one.
COMPARED = 100


def policy(scores: np.ndarray, epsilon: float) -> np.ndarray:
    """Epsilon-greedy with one slot, `[num_users, num_items]` probabilities."""
    found = np.empty(scores.shape)
    table = slot_probabilities(scores.shape[1], 1, epsilon)[:, 0]
    np.put_along_axis(found, np.argsort(-scores, axis=1), table[None], axis=1)
    return found


@functools.cache
def policies(
    simulation: Simulation, logging_epsilon: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The policy that is logged, of a ranker with errors, and the target, which knows the truth."""
    scores = np.log(simulation.attraction)
    rng = np.random.default_rng(seed)
    noisy = scores + scores.std() * rng.standard_normal(scores.shape)
    return policy(noisy, logging_epsilon), policy(scores, TARGET)


def estimate(
    simulation: Simulation, reward: str, num: int, epsilon: float, seed: int, run: int
) -> dict:
    """One log: name of an estimator -> its estimate."""
    rng = np.random.default_rng([seed, run])
    behaviour, target = policies(simulation, epsilon, seed)
    users = rng.integers(simulation.num_users, size=num)
    actions = (np.cumsum(behaviour[users], axis=1) > rng.random((num, 1))).argmax(1)
    if reward == "click":
        rewards = simulation.clicks(users, actions[:, None], rng)[:, 0].astype(np.float64)
    else:
        rewards = simulation.minutes(users, actions, rng)
    logged = off_policy.Logged(rewards, behaviour[users, actions], target[users, actions])
    features = simulation.features[users]
    models = {
        "ridge": cross_fitted_ridge(features[np.arange(num), actions], rewards, features),
        "means": cross_fitted_means(actions, rewards, ACTIONS),
    }
    found = {"IPS": off_policy.ips(logged), "SNIPS": off_policy.snips(logged)}
    for name, predictions in models.items():
        predicted, expected = expectations(predictions, actions, target[users])
        found[f"direct method, {name}"] = off_policy.direct_method(expected)
        found[f"doubly robust, {name}"] = off_policy.doubly_robust(logged, predicted, expected)
    if num < 1000:
        predicted, expected = expectations(models["ridge"], actions, target[users])
        found |= {
            "IPS, bootstrap": off_policy.ips(logged, True, run),
            "SNIPS, bootstrap": off_policy.snips(logged, True, run),
            "doubly robust, ridge, bootstrap": off_policy.doubly_robust(
                logged, predicted, expected, True, run
            ),
        }
    return found


def estimator_rows(
    made: Synthetic, reward: str, num: int, epsilon: float, num_logs: int, seed: int
) -> list[dict]:
    """Errors and coverage of each estimator.

    Args:
        made: The service.
        reward: `click` or `log-minutes`.
        num: Rows of a log.
        epsilon: How often the policy that is logged explores.
        num_logs: Logs, each of its own draws.
        seed: Of all draws.
    """
    simulation, rows = Simulation.of(made, ACTIONS, 1, rate=0.2), []
    _, target = policies(simulation, epsilon, seed)
    means = simulation.attraction if reward == "click" else simulation.log_minutes
    truth = float((target * means).sum(1).mean())
    runs = [estimate(simulation, reward, num, epsilon, seed, run) for run in range(num_logs)]
    ips = np.array([abs(run["IPS"]["mean"] - truth) for run in runs])
    for name in runs[0]:
        mean, low, high = (
            np.array([run[name][key] for run in runs]) for key in ("mean", "low", "high")
        )
        closer = np.abs(mean - truth) < ips
        row = {"section": "estimators", "name": name, "reward": reward, "rows": num}
        row |= {
            "truth": truth,
            "bias": interval(mean - truth),
            "rmse": float(np.sqrt(((mean - truth) ** 2).mean())),
            "closer_than_ips_of_100": int(closer[:COMPARED].sum()),
            "closer_than_ips": share_interval(closer),
            "coverage": share_interval((low <= truth) & (truth <= high)),
            "width": float((high - low).mean()),
        }
        rows.append(row)
        logging.info(
            "%s, %s, %d rows: rmse %.4f, covers %.3f, closer than IPS %.3f",
            *(name, reward, num, row["rmse"], row["coverage"]["mean"]),
            row["closer_than_ips"]["mean"],
        )
    return rows


def list_rows(made: Synthetic, num_logs: int, seed: int) -> list[dict]:
    """Whole lists of the epsilon-greedy stage: the sum of their clicks by item and position."""
    simulation = Simulation.of(made, ITEMS, SLOTS)
    scores = np.log(simulation.attraction)
    noisy = scores + np.random.default_rng(seed).normal(0, scores.std(), scores.shape)
    stage = EpsilonGreedy.empty(scores.shape[1], epsilon=0.5, slots=SLOTS)
    target = np.zeros((*scores.shape, SLOTS))
    table = slot_probabilities(scores.shape[1], SLOTS, TARGET)
    np.put_along_axis(target, np.argsort(-scores, axis=1)[:, :, None], table[None], axis=1)
    truth = float(simulation.value(np.arange(simulation.num_users), target).mean())
    found = []
    for run in range(num_logs):
        rng = np.random.default_rng([seed, run])
        users = rng.integers(simulation.num_users, size=LISTS)
        requests = simulation.requests(users, time=run * LISTS)
        shown = stage(requests, simulation.candidates(users, noisy)).head(SLOTS)
        clicks = simulation.clicks(users, shown.keys, rng)
        of_shown = target[users[:, None], shown.keys, np.arange(SLOTS)]
        estimated = off_policy.item_positions(clicks, shown.columns["propensity"], of_shown)
        found.append([*estimated.values()])
    mean, low, high = np.array(found).T
    row = {"section": "lists", "name": "item-position IPS", "rows": LISTS, "truth": truth}
    row |= {
        "bias": interval(mean - truth),
        "rmse": float(np.sqrt(((mean - truth) ** 2).mean())),
        "coverage": share_interval((low <= truth) & (truth <= high)),
    }
    return [row]
