"""Tables from experiments/results/ranking/simulate.json, for render_results.py."""

from results import origin, read, table

NAME = "ranking/simulate"
CLICKS = {"position": "each item by itself", "cascade": "up to the first click"}


def rows_of(*sections: str) -> list[dict]:
    """The rows of sections, in their order."""
    return [row for row in read(NAME)["rows"] if row["section"] in sections]


def shown(value: dict, form: str = ".3f") -> str:
    """A figure with its interval."""
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def bandits() -> str:
    """What each bandit earns and loses."""
    rows, body = rows_of("bandits"), []
    for row in rows:
        regrets = [shown(row[f"regret_{best}"], ",.0f") for best in ("popular", "personal")]
        earned = [f"{row[key]['mean']:.3f}" for key in ("reward", "reward_at_end")]
        body.append([row["name"], CLICKS[row["clicks"]], *earned, *regrets])
    first = rows[0]
    best = "; ".join(
        f"{CLICKS[row['clicks']]} {row['best_popular']:.3f} and {row['best_personal']:.3f}"
        for row in rows
        if row["name"] == "random"
    )
    about = (
        f"{first['rounds']:,} lists of five from 50 items, {first['runs']} times; intervals are "
        "over these. Reward: expected clicks of a list, or the probability of one where the first "
        f"ends it. The best list for all and the best for each user have {best}. "
    )
    header = ["bandit", "what is clicked", "a list", "last quarter"]
    header += ["regret to the best list for all", "to the best for each user"]
    return table(header, body) + "\n\n" + about + origin(first)


def estimators() -> str:
    """Errors and coverage of off-policy estimates."""
    rows = rows_of("estimators")
    body = [
        [
            row["name"],
            row["reward"],
            f"{row['rows']:,}",
            f"{row['bias']['mean']:+.4f}",
            f"{row['rmse']:.4f}",
            "" if row["name"].startswith("IPS") else f"{row['closer_than_ips_of_100']}",
            "" if row["name"].startswith("IPS") else f"{row['closer_than_ips']['mean']:.3f}",
            shown(row["coverage"]),
        ]
        for row in rows
    ]
    (lists,) = rows_of("lists")
    about = (
        f"{rows[0]['replications']:,} logs of each kind. `of 100`: those of the first hundred in "
        "which an estimate is closer to the truth than IPS; `closer`: the share of all. "
        f"Item-position IPS of lists of five, {lists['rows']} lists a log: bias "
        f"{lists['bias']['mean']:+.4f} of {lists['truth']:.3f}, coverage "
        f"{shown(lists['coverage'])}. "
    )
    header = ["estimate", "reward", "log", "bias", "RMSE", "of 100", "closer", "coverage"]
    return table(header, body) + "\n\n" + about + origin(rows[0])


def tests() -> str:
    """A/A and A/B tests, and the check of the sample ratio."""
    rows = rows_of("tests")
    names = {"plain": "", "cuped": ", CUPED"}
    body = [
        [
            row["name"] + names[row["kind"]],
            shown(row["finds_a_difference"]),
            f"{row['expected_power']:.3f}",
            shown(row["coverage"]),
            f"{row['variance_left']:.3f}",
            f"{row['users_needed']:,}" if row["users_needed"] else "",
        ]
        for row in rows
    ]
    cuped = next(row for row in rows if row["kind"] == "cuped")
    left = f"{cuped['one_minus_squared_correlation']:.3f}"
    about = (
        f"{rows[0]['replications']:,} tests of {rows[0]['users']:,} users each. One minus the "
        f"squared correlation with the period before is {left}, which is what CUPED should leave "
        "of the variance. `users`: of each variant, for power 0.8. "
    )
    header = ["test", "finds a difference", "expected", "coverage", "variance", "users"]
    return table(header, body) + "\n\n" + about + origin(rows[0])


def ratios() -> str:
    """How often the check of the sample ratio raises an alarm."""
    rows = rows_of("sample ratio")
    body = [[row["name"], f"{row['users']:,}", shown(row["alarms"], ".4f")] for row in rows]
    header = ["", "users", "share of tests with p < 0.001"]
    return table(header, body) + "\n\n" + origin(rows[0])
