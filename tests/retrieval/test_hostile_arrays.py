"""Hostile floats, dtypes, orders, keys and counts: an answer or an error, no signal and no hang."""

import collections
import os
import pathlib
import subprocess
import sys

import pytest
from backends import needs

PROGRAM = pathlib.Path(__file__).parents[1] / "hostile.py"
LOCAL = ["exact", "flat", "hnsw", "ivf", "ivf_pq", "tiered", "scann"]


def play(backends, first, step, timeout):
    """How often each outcome came, after a check that there are no others."""
    command = [sys.executable, str(PROGRAM), " ".join(map(needs, backends)), str(first), str(step)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        output, end = done.stdout, f"ended with {done.returncode}: {done.stderr[-1500:]}"
        ended_well = done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, end, ended_well = os.fsdecode(error.stdout or b""), "did not end", False
    lines = [line.split("\t") for line in output.splitlines()]
    assert ended_well, f"{lines[-1:]} {end}"
    wrong = [line for line in lines if line[1] not in ("answered", "refused")]
    assert not wrong, f"{len(wrong)} wrong, of them {wrong[:5]}"
    return collections.Counter(line[1] for line in lines)


def test_some_cases():
    counts = play(LOCAL[:-1], first=5, step=67, timeout=300)
    assert counts["answered"] > 50 and counts["refused"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("backend", LOCAL)
def test_all_cases(backend):
    counts = play([backend], first=0, step=1, timeout=3000)
    print(backend, dict(counts))
    assert counts["answered"] > 500 and counts["refused"] > 500
