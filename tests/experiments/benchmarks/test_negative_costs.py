"""The benchmarks of frequencies and of a step's costs, each small.

That of a step's costs is slow: it times two kinds of negatives, each traced for itself.
"""

import json

import pytest
import tiny

SMALL = "--dataset=synthetic/small"


def test_frequencies(tmp_path):
    output = tmp_path / "out.json"
    tiny.script(
        tiny.ROOT / "experiments/benchmarks/frequency.py",
        *(SMALL, "--batch_size=512", "--least=20", f"--output={output}"),
    )
    rows = json.loads(output.read_text())["rows"]
    error = {(row["time"], row["buckets_per_item"], row["epochs"]): row for row in rows}
    assert error["examples", 4.0, 2]["median_error"] < 0.1
    assert error["batches", 4.0, 2]["median_error"] > 2 * error["examples", 4.0, 2]["median_error"]
    assert len({row["items"] for row in rows}) == 1 and rows[0]["items"] > 10


@pytest.mark.slow
def test_step_costs(tmp_path):
    output = tmp_path / "out.json"
    tiny.script(
        tiny.ROOT / "experiments/benchmarks/negatives.py",
        *(SMALL, "--batch_sizes=128", "--steps=2", "--repeats=2"),
        *("--variants=batch,hard 10%".replace("hard 10%", '"hard, 10%"'), f"--output={output}"),
    )
    batch, hard = json.loads(output.read_text())["rows"]
    assert (batch["ratio"], batch["mining_s"], batch["own_negatives"]) == (1.0, None, 0)
    assert hard["own_negatives"] == round(127 / 9) and hard["mining_s"] > 0
