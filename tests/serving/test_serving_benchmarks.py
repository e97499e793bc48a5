"""The benchmarks of a service, each small."""

import json

import pytest
import tiny

BENCHMARKS = tiny.ROOT / "experiments" / "benchmarks"


def test_batches_against_one_by_one(bundle_folder, tmp_path):
    output = tmp_path / "out.json"
    flags = (f"--bundle={bundle_folder}", "--requests=8", "--rounds=10", f"--output={output}")
    tiny.script(BENCHMARKS / "batching.py", *flags)
    result = json.loads(output.read_text())
    rows = {row["stage"]: row for row in result["rows"]}
    assert [*rows] == ["encode", "search", "recommend"] and result["requests"] == 8
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["each"] / row["together"])
    assert rows["encode"]["ratio"] > 1.5  # of 8, whatever else the machine does


@pytest.mark.slow
def test_deploys_while_clients_ask(bundle_folder, other_folder, tmp_path):
    output = tmp_path / "out.json"
    tiny.script(
        BENCHMARKS / "deploys.py",
        f"--bundles={bundle_folder},{other_folder}",
        *("--deploys=10", "--clients=2", "--calm=1", "--pause=0", f"--output={output}"),
    )
    result = json.loads(output.read_text())
    assert result["deploys"] == result["deploys_as_expected"] == 10 and result["refused"] == 2
    assert result["failed"] == result["mixed"] == 0 and result["requests"] > 10
    assert result["resident_mib"].keys() == {"5", "10"}
