"""Whether A/B tests find what is there, what CUPED saves, and whether lost users are noticed."""

import numpy as np
from absl import logging

from twotower.data.synthetic import Synthetic
from twotower.evaluation.intervals import interval, share_interval
from twotower.reranking import experiments, power
from twotower.reranking.simulation import Simulation

ITEMS, SLOTS = 50, 5  # and the length of a list
HALVES = {"control": 0.5, "treatment": 0.5}


def ab_rows(made: Synthetic, num_tests: int, seed: int) -> list[dict]:
    """A/A and A/B tests of users who come several times, with and without CUPED."""
    simulation = Simulation.of(made, ITEMS, SLOTS)
    rng = np.random.default_rng(seed)
    users = np.arange(simulation.num_users)
    ids = users.astype(str)
    scores = np.log(simulation.attraction)
    noisy = scores + rng.normal(0, scores.std(), scores.shape)
    lists = {
        name: np.argsort(-ranked, axis=1)[:, :SLOTS]
        for name, ranked in (("control", noisy), ("treatment", noisy + scores))
    }
    expected = {
        name: (simulation.attraction[users[:, None], keys] * simulation.examination).sum(1)
        for name, keys in lists.items()
    }
    visits = rng.lognormal(2, 0.7, len(users))  # expected number of each user, in each period

    def clicks(keys: np.ndarray) -> np.ndarray:
        """Clicks of each user in one period."""
        who = np.repeat(users, rng.poisson(visits))
        each = simulation.clicks(who, keys[who], rng).sum(1)
        return np.bincount(who, each, len(users))

    rows = []
    for name in ("A/A", "A/B"):
        shown = lists["treatment" if name == "A/B" else "control"]
        effect = 0.0
        if name == "A/B":
            effect = float((visits * (expected["treatment"] - expected["control"])).mean())
        found, ratios, deviations, correlations = {"plain": [], "cuped": []}, [], [], []
        for run in range(num_tests):
            half = experiments.Experiment(f"{name} {run}", HALVES)
            treated = half.assign(ids) == "treatment"
            before = clicks(lists["control"])
            values = clicks(np.where(treated[:, None], shown, lists["control"]))
            for kind, adjusted in (("plain", values), ("cuped", experiments.cuped(values, before))):
                difference = experiments.difference(adjusted[treated], adjusted[~treated])
                found[kind].append([*difference.values()])
            ratios.append(experiments.sample_ratio([treated.sum(), (~treated).sum()], [0.5, 0.5]))
            deviations.append(values.std(ddof=1))
            correlations.append(np.corrcoef(values, before)[0, 1])
        widths = {}
        for kind, estimates in found.items():
            mean, low, high = np.array(estimates).T
            widths[kind] = float((high - low).mean())
            finds = (low > 0) | (high < 0)
            deviation = np.mean(deviations) * widths[kind] / widths["plain"]
            row = {"section": "tests", "name": name, "kind": kind, "users": len(users)}
            row |= {
                "effect": effect,
                "bias": interval(mean - effect),
                "finds_a_difference": share_interval(finds),
                "expected_power": power.power(deviation, effect, len(users) // 2),
                "coverage": share_interval((low <= effect) & (effect <= high)),
                "width": widths[kind],
                "variance_left": (widths[kind] / widths["plain"]) ** 2,
                "users_needed": power.sample_size(deviation, effect) if effect else None,
            }
            if kind == "cuped":
                row["one_minus_squared_correlation"] = float(1 - np.mean(correlations) ** 2)
            rows.append(row)
            logging.info("%s, %s: finds %.3f", name, kind, finds.mean())
        if name == "A/A":
            row = {"section": "sample ratio", "name": "nothing lost", "users": len(users)}
            alarms = share_interval(np.array(ratios) < 0.001)
            below = share_interval(np.array(ratios) < 0.05)
            rows.append(row | {"lost": 0.0, "alarms": alarms, "below_0.05": below})
    return rows


def ratio_rows(num: int, num_tests: int, seed: int) -> list[dict]:
    """Tests with `num` users, in which one variant loses a share of its users."""
    ids, rng, rows = np.arange(num).astype(str), np.random.default_rng(seed), []
    halves = [experiments.Experiment(f"ratio {run}", HALVES) for run in range(num_tests)]
    sizes = [(half.assign(ids) == "treatment").sum() for half in halves]
    for lost in (0.0, 0.01, 0.02, 0.03):
        alarms = [
            experiments.sample_ratio([num - size, rng.binomial(size, 1 - lost)], [0.5, 0.5]) < 0.001
            for size in sizes
        ]
        row = {"section": "sample ratio", "name": f"{lost:.0%} of one variant lost", "users": num}
        rows.append(row | {"lost": lost, "alarms": share_interval(np.array(alarms))})
    return rows
