"""A/B tests: who sees what, what is logged, and which differences are there."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.reranking import experiments
from twotower.reranking.bandits import EpsilonGreedy
from twotower.reranking.experiments import Experiment
from twotower.reranking.power import power, power_table, sample_size
from twotower.retrieval.candidates import Candidates

USERS = [f"u{number}" for number in range(20_000)]
HALVES = {"control": 0.5, "treatment": 0.5}
CATALOGUE = Catalogue(pd.DataFrame({"item_id": ["a", "b", "c"]}))


def test_a_user_stays_where_a_hash_puts_them():
    # blake2b("ranker:u0") / 2^64 and so on: .165, .469, .322, .401, .296, .366.
    experiment = Experiment("ranker", {"x": 0.3, "y": 0.1, "z": 0.05})
    assert experiment.assign(USERS[:6]).tolist() == ["x", "", "y", "z", "x", "y"]
    assert experiment.assign(USERS[3:4]).tolist() == ["z"]


def test_users_are_spread_by_the_shares_and_anew_for_each_experiment():
    variants = Experiment("a", {"x": 0.2, "y": 0.3}).assign(USERS)
    counts = [(variants == name).sum() for name in ("x", "y", "")]
    assert experiments.sample_ratio(counts, [0.2, 0.3, 0.5]) > 0.01
    other = Experiment("b", {"x": 0.2, "y": 0.3}).assign(USERS)
    both = pd.crosstab(variants, other).to_numpy()
    assert scipy.stats.chi2_contingency(both).pvalue > 0.01
    # An unknown user is in none; shares that are 1 together leave nobody out.
    thirds = Experiment("c", dict.fromkeys("xyz", 1 / 3))
    assert thirds.assign([""]).tolist() == [""] and (thirds.assign(USERS) != "").all()


@pytest.mark.parametrize(
    "name, variants", [("", HALVES), ("a", {}), ("a", {"x": 0}), ("a", {"x": 0.6, "y": 0.5}),
                       ("a", {"": 1}), ("a", {"x": np.nan})],
)  # fmt: skip
def test_what_an_experiment_refuses(name, variants):
    with pytest.raises(ValueError, match="shares above 0 that are 1 at most together"):
        Experiment(name, variants)


@pytest.mark.parametrize("users, wrong", [("ab", "'ab'"), (["a", None], "None"), ([7], "7")])
def test_users_are_a_list_of_strings(users, wrong):
    # The letters of "ab" would be users, and all users without an id would get one variant.
    with pytest.raises(ValueError, match=f"user_ids are strings, .* got {wrong}"):
        Experiment("a", HALVES).assign(users)


def test_a_row_for_each_item_that_was_shown():
    requests = Requests.of(CATALOGUE, [[], [], []], user_id=["u", "v", ""], time=[7, 8, 9])
    candidates = Candidates.rank(
        np.array([[2, 0, 1], [1, -1, -1], [0, 1, 2]]), np.float32([[3, 2, 1]] * 3), k=3
    )
    experiment = Experiment("ranker", HALVES)
    variants = np.array(["control", "treatment", ""], object)
    rows = experiments.exposures(requests, candidates, experiment, variants, CATALOGUE, k=2)
    assert [(r["user_id"], r["variant"], r["position"], r["item_id"], r["time"]) for r in rows] == [
        ("u", "control", 1, "c", 7), ("u", "control", 2, "a", 7), ("v", "treatment", 1, "b", 8),
    ]  # fmt: skip
    assert rows[0]["propensity"] is None and rows[0]["score"] == 3
    shown = EpsilonGreedy.empty(3, epsilon=1, slots=1)(requests, candidates)
    rows = experiments.exposures(requests, shown, experiment, variants, CATALOGUE, k=2)
    assert [row["propensity"] for row in json.loads(json.dumps(rows))] == [1 / 3, None, 1]
    with pytest.raises(ValueError, match="3 requests, 3 lists and 2 variants"):
        experiments.exposures(requests, shown, experiment, variants[:2], CATALOGUE, k=2)
    with pytest.raises(ValueError, match=r"no variants \['other'\]"):
        variants[0] = "other"
        experiments.exposures(requests, shown, experiment, variants, CATALOGUE, k=2)


def test_the_difference_by_hand():
    # Means 4 and 1; variances 4 and 1 of 3 and 3 users: sqrt(4/3 + 1/3) = 1.29099.
    found = experiments.difference([2, 4, 6], [0, 1, 2])
    assert found == pytest.approx({"mean": 3, "low": 0.469699, "high": 5.530301}, abs=1e-5)


def test_cuped_by_hand():
    # before centred: -1, 0, 1; theta = (-1 * 1 + 1 * 5) / 2 = 2, so 1 + 2, 0, 5 - 2.
    assert experiments.cuped([1, 0, 5], [3, 4, 5]).tolist() == [3, 0, 3]
    assert experiments.cuped([1, 0, 5], [4, 4, 4]).tolist() == [1, 0, 5]
    rng = np.random.default_rng(0)
    before = rng.standard_normal(5000)
    values = 0.8 * before + 0.6 * rng.standard_normal(5000)
    adjusted = experiments.cuped(values, before)
    assert adjusted.mean() == pytest.approx(values.mean())
    left = 1 - np.corrcoef(values, before)[0, 1] ** 2
    assert adjusted.var() / values.var() == pytest.approx(left)


def test_the_ratio_of_the_samples():
    # (10 - 15)^2 / 15 + (20 - 15)^2 / 15 = 10/3; of one degree of freedom: erfc(sqrt(10/6)).
    assert experiments.sample_ratio([10, 20], [1, 1]) == pytest.approx(0.0678892, abs=1e-6)
    assert experiments.sample_ratio([10, 20], [1, 2]) == 1
    assert experiments.sample_ratio([50_000, 48_500], [0.5, 0.5]) < 1e-5


def test_how_many_users_a_test_needs():
    # 2 * ((1.959964 + .841621) * 3 / .5)^2 = 565.1.
    assert sample_size(3.0, 0.5) == 566 == sample_size(3.0, -0.5)
    assert power(3.0, 0.5, 566) == pytest.approx(0.8, abs=0.001)
    assert power(3.0, 0.0, 566) == pytest.approx(0.05)
    table = power_table(1.0, [0.1, 0.2], [100, 1000, 10_000])
    assert (
        table.shape == (2, 3) and (np.diff(table) > 0).all() and (np.diff(table, axis=0) > 0).all()
    )
    # By simulation: the share of 2,000 tests whose interval leaves 0 out.
    rng = np.random.default_rng(0)
    treatment, control = rng.normal(0.2, 1, (2000, 200)), rng.normal(0, 1, (2000, 200))
    found = [experiments.difference(*both)["low"] > 0 for both in zip(treatment, control)]
    assert np.mean(found) == pytest.approx(power(1.0, 0.2, 200), abs=0.035)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: experiments.difference([1.0], [1, 2]),
            "treatment must be a finite value for each",
        ),
        (lambda: experiments.difference([1, 2], [1, np.nan]), "control .* with 1 NaN"),
        (lambda: experiments.cuped([1, 2], [1, 2, 3]), "values of 2 users and before of 3"),
        (lambda: experiments.sample_ratio([0, 0], [1, 1]), "expected counts of 0 or more"),
        (lambda: experiments.sample_ratio([1, 2], [1, 0]), "shares above 0"),
        (lambda: experiments.sample_ratio([np.inf, 2], [1, 1]), "expected counts"),
        (lambda: experiments.sample_ratio([5], [1]), "two variants"),
        (lambda: sample_size(1.0, 0.0), "effect must not be 0"),
        (lambda: sample_size(1.0, 1e-200), "is too small"),
        (lambda: power(1.0, np.nan, 9), "effect must be finite; got nan"),
        (lambda: sample_size(-1.0, 0.1), "deviation must be above 0"),
        (lambda: power(1.0, 0.1, 0), "size must be an integer of 1"),
        (lambda: power(1.0, 0.1, 9, level=1.0), "level within 0 and 1"),
    ],
)
def test_what_a_test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_re_ranking_needs_no_tensorflow():
    names = "upper_bounds off_policy reward_models experiments power shadow simulation".split()
    imports = "; ".join(f"import twotower.reranking.{name}" for name in names)
    subprocess.run(
        [sys.executable, "-c", f"{imports}; import sys; assert 'tensorflow' not in sys.modules"],
        check=True,
    )
