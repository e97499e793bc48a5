"""The script of simulations: that it runs, and that what it writes says what it should."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_the_script(tmp_path):
    sizes = ["--rounds=500", "--runs=2", "--replications=8", "--users=100"]
    command = [sys.executable, ROOT / "experiments" / "simulate.py", *sizes]
    subprocess.run([*command, f"--output={tmp_path}/simulate.json"], check=True, cwd=ROOT)
    rows = json.loads((tmp_path / "simulate.json").read_text())["rows"]
    sections = {"bandits", "estimators", "lists", "tests", "sample ratio"}
    assert {row["section"] for row in rows} == sections
    assert all(
        row["command"].startswith("python experiments/simulate.py") and row["seed"] == 0
        for row in rows
    )
    regret = {
        (row["name"], row["clicks"]): row["regret_personal"]["mean"]
        for row in rows
        if row["section"] == "bandits"
    }
    for clicks in ("position", "cascade"):
        assert regret["LinUCB", clicks] < regret["greedy", clicks] < regret["random", clicks]
