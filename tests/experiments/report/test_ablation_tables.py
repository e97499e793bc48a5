"""Verdicts over the rules: what is more than chance, and what is enough."""

import sys

import pytest
import tiny

sys.path.insert(0, str(tiny.ROOT / "experiments" / "report"))
import ablation_tables


def row(name, value, protocol="random", half=0.01):
    metrics = {"recall_micro@100": {"mean": value, "low": value - half, "high": value + half}}
    return {"group": "g", "name": name, "protocol": protocol, "metrics": metrics}


def test_every_rule_is_of_runs_that_have_a_result():
    names = {(row["group"], row["name"]) for row in ablation_tables.rows()}
    for _, better, worse, _ in (*ablation_tables.RULES, *ablation_tables.SUFFICIENT):
        assert {better, worse} <= names


@pytest.mark.parametrize(
    "one, other, found, enough",
    [
        (0.5, 0.48, "holds", "holds"),
        (0.5, 0.495, "even", "holds"),
        (0.495, 0.5, "even", "even"),
        (0.48, 0.5, "does not", "does not"),
    ],
)
def test_a_verdict_is_by_the_wider_interval(monkeypatch, one, other, found, enough):
    rule = ("claim", ("g", "one"), ("g", "other"), "recall_micro@100")
    rows = [row("one", one), row("other", other, half=0.001)]
    monkeypatch.setattr(ablation_tables, "rows", lambda: rows)
    assert ablation_tables.verdict(rule, "random") == [f"{one:.3f}", f"{other:.3f}", found]
    monkeypatch.setattr(ablation_tables, "SUFFICIENT", (rule,))
    assert ablation_tables.verdict(rule, "random")[2] == enough
    # A side without a run has no verdict, and seeds are averaged.
    assert ablation_tables.verdict(rule, "temporal-successive") == ["", "", ""]
    rows.append(row("one", one + 0.1))
    assert ablation_tables.verdict(rule, "random")[0] == f"{one + 0.05:.3f}"
