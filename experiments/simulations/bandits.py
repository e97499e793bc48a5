"""What bandits lose against the best list, and against one that never explores."""

import numpy as np
from absl import logging

from twotower.data.synthetic import Synthetic
from twotower.evaluation.intervals import interval
from twotower.reranking.bandits import EpsilonGreedy, Thompson
from twotower.reranking.simulation import Simulation
from twotower.reranking.upper_bounds import CascadeUcb, LinUcb

# Items, length of a list, and lists that are shown before a bandit learns again.
ITEMS, SLOTS, BATCH = 50, 5, 50


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


def run_bandit(simulation: Simulation, name: str, clicking: str, rounds: int, seed: int) -> dict:
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
    for start in range(0, rounds, BATCH):
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


def bandit_rows(
    made: Synthetic, clicking: str, rounds: int, num_runs: int, seed: int
) -> list[dict]:
    """Regret of each bandit, against the best list for all and the best list for each user.

    Args:
        made: The service.
        clicking: `position`, or `cascade`: users look until they click.
        rounds: Lists that a bandit shows.
        num_runs: Times that each bandit starts anew.
        seed: Of all draws.
    """
    simulation, rows = Simulation.of(made, ITEMS, SLOTS), []
    for name in bandits(simulation):
        runs = [
            run_bandit(simulation, name, clicking, rounds, seed + run) for run in range(num_runs)
        ]
        values = {key: np.array([run[key] for run in runs]) for key in runs[0]}
        row = {"section": "bandits", "name": name, "clicks": clicking}
        row |= {"reward": interval(values["all"]), "reward_at_end": interval(values["last"])}
        for best in ("popular", "personal"):
            row[f"regret_{best}"] = interval((values[best] - values["all"]) * rounds)
            row[f"best_{best}"] = float(values[best][0])
        rows.append(row)
        logging.info("%s, %s: %.4f a list", name, clicking, row["reward"]["mean"])
    return rows
