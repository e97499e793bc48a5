"""Exploration, off-policy estimates and A/B tests against a known truth.

    python experiments/simulate.py --output=simulate.json

The truth is that of the synthetic service: how likely each user clicks each item that is looked at,
and how likely each position is looked at (twotower/reranking/simulation.py). Four questions:

- What do bandits lose against the best list, and against one that never explores?
- How far are off-policy estimates from the truth, and do their 95% intervals cover it?
- Do A/A tests find a difference in 5% of the cases, and what does CUPED save?
- Does the check of the sample ratio find users that one variant loses?
"""

import concurrent.futures
import functools
import multiprocessing

import numpy as np
from absl import flags, logging

from twotower.commands import script

from twotower.bundle.provenance import provenance, write_result  # isort: skip
from twotower.data import synthetic
from twotower.data.synthetic import Synthetic, SyntheticConfig
from twotower.evaluation.metrics import interval, share_interval
from twotower.reranking import experiments, off_policy, power
from twotower.reranking.bandits import EpsilonGreedy, Thompson, slot_probabilities
from twotower.reranking.reward_models import cross_fitted_means, cross_fitted_ridge, expectations
from twotower.reranking.simulation import Simulation
from twotower.reranking.upper_bounds import CascadeUcb, LinUcb

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 20_000, "Lists that a bandit shows.", lower_bound=100)
flags.DEFINE_integer("runs", 5, "Times that each bandit starts anew.", lower_bound=2)
flags.DEFINE_integer("replications", 2000, "Logs, and A/B tests, of each kind.", lower_bound=8)
flags.DEFINE_integer("users", 2000, "Users of the service.", lower_bound=100)
PARTS = ["bandits", "estimators", "lists", "tests", "ratios"]
flags.DEFINE_multi_enum("parts", PARTS, PARTS, "What is simulated.")
flags.DEFINE_integer("processes", 2, "Parts that run at once.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of the service and of all draws.")
script.DEFINE_path("output", None, "JSON file to write.")

# A bandit: items, length of its lists, and lists that are shown before it learns again.
ITEMS, SLOTS, BATCH = 50, 5, 50
# A log: items of which one is shown, and how often the target explores.
ACTIONS, TARGET = 10, 0.1
# Replications in which errors are compared one by one.
COMPARED = 100
# Logs: their rewards, number of rows, and how often the policy explored. In the short ones few rows
# have large weights.
LOGS = [
    *(("click", 1000, 0.5), ("log-minutes", 1000, 0.5)),
    *(("click", 300, 0.3), ("log-minutes", 300, 0.3)),
]
HALVES = {"control": 0.5, "treatment": 0.5}


def bandits(simulation: Simulation) -> dict:
    """Name -> a bandit that has seen nothing."""
    settings = {"slots": SLOTS, "among": ITEMS, "prior": 0.2, "strength": 2.0}
    columns = [f"feature_{n}" for n in range(simulation.features.shape[2])]
    return {
        "random": EpsilonGreedy.empty(ITEMS, epsilon=1.0, **settings),
        "greedy": EpsilonGreedy.empty(ITEMS, epsilon=0.0, **settings),
        "epsilon-greedy": EpsilonGreedy.empty(ITEMS, epsilon=0.1, **settings),
        "Thompson": Thompson.empty(ITEMS, **settings),
        "CascadeUCB1": CascadeUcb.empty(ITEMS, SLOTS, ITEMS),
        "LinUCB": LinUcb.empty(np.zeros((ITEMS, 0)), columns, 0.5, SLOTS, ITEMS),
    }


def run_bandit(simulation: Simulation, name: str, clicking: str, seed: int) -> dict:
    """Mean expected reward of a list: of all, of the last quarter, and of the best lists."""
    stage, rng = bandits(simulation)[name], np.random.default_rng(seed)
    if hasattr(stage, "seed"):
        stage.seed = seed
    # The order in which a bandit that knows nothing finds the items is no better than chance.
    order = np.tile(rng.permutation(ITEMS).astype(np.float64), (simulation.num_users, 1))
    cascade = clicking == "cascade"

    def reward(users: np.ndarray, keys: np.ndarray) -> np.ndarray:
        chance = simulation.attraction[users[:, None], keys]
        return 1 - (1 - chance).prod(1) if cascade else chance @ simulation.examination

    everybody = np.arange(simulation.num_users)
    popular = np.argsort(-simulation.attraction.mean(0))[:SLOTS]
    personal = np.argsort(-simulation.attraction, axis=1)[:, :SLOTS]
    found = []
    for start in range(0, FLAGS.rounds, BATCH):
        users = rng.integers(simulation.num_users, size=BATCH)
        requests = simulation.requests(users, time=start)
        candidates = simulation.candidates(users, order, features=isinstance(stage, LinUcb))
        shown = stage(requests, candidates).head(SLOTS)
        found.append(reward(users, shown.keys))
        draw = simulation.cascade if cascade else simulation.clicks
        clicks = draw(users, shown.keys, rng)
        # A cascade shows what was looked at; elsewhere, how likely a position is looked at counts.
        looked_at = (np.cumsum(clicks, axis=1) - clicks == 0) | (not cascade)
        examination = np.ones(SLOTS) if cascade else simulation.examination
        examination = np.broadcast_to(examination, clicks.shape)[looked_at]
        if isinstance(stage, CascadeUcb):
            stage.update(shown.keys, clicks)
        elif isinstance(stage, LinUcb):
            stage.update(stage.contexts(shown)[looked_at], clicks[looked_at], examination)
        else:
            stage.update(shown.keys[looked_at], clicks[looked_at], examination)
    rewards = np.concatenate(found)
    return {
        "all": rewards.mean(),
        "last": rewards[-len(rewards) // 4 :].mean(),
        "popular": reward(everybody, np.tile(popular, (simulation.num_users, 1))).mean(),
        "personal": reward(everybody, personal).mean(),
    }


def bandit_rows(made: Synthetic, clicking: str) -> list[dict]:
    """Regret of each bandit, against the best list for all and the best list for each user."""
    simulation, rows = Simulation.of(made, ITEMS, SLOTS), []
    for name in bandits(simulation):
        runs = [
            run_bandit(simulation, name, clicking, FLAGS.seed + run) for run in range(FLAGS.runs)
        ]
        values = {key: np.array([run[key] for run in runs]) for key in runs[0]}
        row = {"section": "bandits", "name": name, "clicks": clicking}
        row |= {"reward": interval(values["all"]), "reward_at_end": interval(values["last"])}
        for best in ("popular", "personal"):
            row[f"regret_{best}"] = interval((values[best] - values["all"]) * FLAGS.rounds)
            row[f"best_{best}"] = float(values[best][0])
        rows.append(row)
        logging.info("%s, %s: %.4f a list", name, clicking, row["reward"]["mean"])
    return rows


def policy(scores: np.ndarray, epsilon: float) -> np.ndarray:
    """Epsilon-greedy with one slot, `[num_users, num_items]` probabilities."""
    found = np.empty(scores.shape)
    table = slot_probabilities(scores.shape[1], 1, epsilon)[:, 0]
    np.put_along_axis(found, np.argsort(-scores, axis=1), table[None], axis=1)
    return found


@functools.cache
def policies(simulation: Simulation, logging_epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """The policy that is logged, of a ranker with errors, and the target, which knows the truth."""
    scores = np.log(simulation.attraction)
    rng = np.random.default_rng(FLAGS.seed)
    noisy = scores + scores.std() * rng.standard_normal(scores.shape)
    return policy(noisy, logging_epsilon), policy(scores, TARGET)


def estimate(simulation: Simulation, reward: str, num: int, epsilon: float, seed: int) -> dict:
    """One log: name of an estimator -> its estimate."""
    rng = np.random.default_rng([FLAGS.seed, seed])
    behaviour, target = policies(simulation, epsilon)
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
            "IPS, bootstrap": off_policy.ips(logged, True, seed),
            "SNIPS, bootstrap": off_policy.snips(logged, True, seed),
            "doubly robust, ridge, bootstrap": off_policy.doubly_robust(
                logged, predicted, expected, True, seed
            ),
        }
    return found


def estimator_rows(made: Synthetic, reward: str, num: int, epsilon: float) -> list[dict]:
    """Errors and coverage of each estimator, in logs of `num` rows of a policy with `epsilon`."""
    simulation, rows = Simulation.of(made, ACTIONS, 1, rate=0.2), []
    _, target = policies(simulation, epsilon)
    means = simulation.attraction if reward == "click" else simulation.log_minutes
    truth = float((target * means).sum(1).mean())
    runs = [estimate(simulation, reward, num, epsilon, run) for run in range(FLAGS.replications)]
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


def list_rows(made: Synthetic) -> list[dict]:
    """Whole lists of the epsilon-greedy stage: the sum of their clicks by item and position."""
    simulation, slots, num = Simulation.of(made, 20, SLOTS), SLOTS, 500
    scores = np.log(simulation.attraction)
    noisy = scores + np.random.default_rng(FLAGS.seed).normal(0, scores.std(), scores.shape)
    stage = EpsilonGreedy.empty(scores.shape[1], epsilon=0.5, slots=slots)
    target = np.zeros((*scores.shape, slots))
    table = slot_probabilities(scores.shape[1], slots, TARGET)
    np.put_along_axis(target, np.argsort(-scores, axis=1)[:, :, None], table[None], axis=1)
    truth = float(simulation.value(np.arange(simulation.num_users), target).mean())
    found = []
    for run in range(FLAGS.replications // 4):
        rng = np.random.default_rng([FLAGS.seed, run])
        users = rng.integers(simulation.num_users, size=num)
        requests = simulation.requests(users, time=run * num)
        shown = stage(requests, simulation.candidates(users, noisy)).head(slots)
        clicks = simulation.clicks(users, shown.keys, rng)
        of_shown = target[users[:, None], shown.keys, np.arange(slots)]
        estimated = off_policy.item_positions(clicks, shown.columns["propensity"], of_shown)
        found.append([*estimated.values()])
    mean, low, high = np.array(found).T
    row = {"section": "lists", "name": "item-position IPS", "rows": num, "truth": truth}
    row |= {
        "bias": interval(mean - truth),
        "rmse": float(np.sqrt(((mean - truth) ** 2).mean())),
        "coverage": share_interval((low <= truth) & (truth <= high)),
    }
    return [row]


def ab_rows(made: Synthetic) -> list[dict]:
    """A/A and A/B tests of users who come several times, with and without CUPED."""
    simulation = Simulation.of(made, ITEMS, SLOTS)
    rng = np.random.default_rng(FLAGS.seed)
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
        for run in range(FLAGS.replications):
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


def ratio_rows() -> list[dict]:
    """Tests of fifty times the users, of which one variant loses a few."""
    num, runs = 50 * FLAGS.users, max(2, FLAGS.replications // 40)
    ids, rng, rows = np.arange(num).astype(str), np.random.default_rng(FLAGS.seed), []
    halves = [experiments.Experiment(f"ratio {run}", HALVES) for run in range(runs)]
    sizes = [(half.assign(ids) == "treatment").sum() for half in halves]
    for lost in (0.0, 0.01, 0.02, 0.03):
        alarms = [
            experiments.sample_ratio([num - size, rng.binomial(size, 1 - lost)], [0.5, 0.5]) < 0.001
            for size in sizes
        ]
        row = {"section": "sample ratio", "name": f"{lost:.0%} of one variant lost", "users": num}
        rows.append(row | {"lost": lost, "alarms": share_interval(np.array(alarms))})
    return rows


def main() -> None:
    made = synthetic.generate(
        SyntheticConfig(
            num_users=FLAGS.users, num_items=300, num_interactions=6 * FLAGS.users, seed=FLAGS.seed
        )
    )
    part = functools.partial
    parts = {
        "bandits": [part(bandit_rows, made, clicking) for clicking in ("position", "cascade")],
        "estimators": [part(estimator_rows, made, *log) for log in LOGS],
        "lists": [part(list_rows, made)],
        "tests": [part(ab_rows, made)],
        "ratios": [ratio_rows],
    }
    asked = [each for name in FLAGS.parts for each in parts[name]]
    # A fork has the flags.
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(FLAGS.processes, context) as pool:
        rows = [row for future in [pool.submit(each) for each in asked] for row in future.result()]
    settings = {name: FLAGS[name].value for name in ("rounds", "runs", "replications", "users")}
    rows = [{**settings, **row, "seed": FLAGS.seed, **provenance()} for row in rows]
    if FLAGS.output:
        write_result(FLAGS.output, {"rows": rows})


if __name__ == "__main__":
    script.run(main)
