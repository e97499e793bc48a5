"""Forty lines that know nothing of this package give the committed figures."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_the_script_is_short_and_independent():
    text = (ROOT / "tests" / "recompute.py").read_text()
    assert len(text.splitlines()) <= 40
    assert "twotower" not in text


@pytest.mark.slow
@pytest.mark.data
def test_gives_the_committed_figures(ml_1m_dir):
    bundle = os.environ.get("TWOTOWER_BUNDLE")
    if not bundle:
        pytest.skip("TWOTOWER_BUNDLE must name the bundle of flags/movielens/random.flags")
    path = ROOT / "experiments/results/movielens/movielens_1m_random.json"
    row = json.loads(path.read_text())["rows"][0]
    manifest = json.loads((pathlib.Path(bundle) / "manifest.json").read_text())
    if manifest["model_version"] != row["model_version"]:
        pytest.skip(f"{bundle} is not the committed figures' model {row['model_version']}")
    command = [sys.executable, "tests/recompute.py", bundle, str(ml_1m_dir / "ratings.dat")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    figures = json.loads(run.stdout.splitlines()[-1])
    for name, value in figures.items():
        assert value == pytest.approx(row["metrics"][name]["mean"], abs=1e-4), name
