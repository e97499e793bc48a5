"""The index benchmark: its rows, going on where it stopped, other people's vectors, mistakes."""

import json

import numpy as np
import pytest
import tiny
from backends import needs

needs("hnsw")

SCRIPT = tiny.ROOT / "experiments/benchmarks/retrieval.py"
WANTED = {
    "backend", "metric", "parameters", "num_items", "recall@10", "qps", "p50_ms", "p99_ms",
    "build_s", "bytes_per_vector",
}  # fmt: skip


def benchmark(output, *flags, check=True):
    common = ["--k=10", "--core=-1", f"--cache={output.parent / 'cache'}", f"--output={output}"]
    return tiny.script(SCRIPT, *common, *flags, check=check)


def test_rows_and_what_is_done_already(tmp_path):
    output = tmp_path / "out.json"
    flags = ["--noise=gaussian", "--num_items=2500", "--backends=exact,hnsw"]
    printed = benchmark(output, *flags, "--dim=8").stdout
    rows = json.loads(output.read_text())["rows"]
    assert "2,500 x 8   hnsw" in printed and output.with_suffix(".png").stat().st_size > 5000
    tuned = [row for row in rows if row["tuned"] and not row["constraint"]]
    assert [row["variant"] for row in tuned] == ["exact", "hnsw"]
    for row in tuned:
        assert row.keys() >= WANTED and 0 < row["p50_ms"] <= row["p99_ms"]
    assert tuned[0]["recall@10"] == 1 and tuned[1]["recall@10"] > 0.95
    constraints = {row["constraint"] for row in rows if row["variant"] == "hnsw"}
    assert constraints == {"", "top 500 excluded", "2% near", "2% far"}
    # The first row of each index says where all of them come from.
    told = [row for row in rows if "command" in row]
    assert [row["variant"] for row in told] == ["exact", "hnsw"]
    assert all({"commit", "build", "unit"} <= row.keys() for row in told)
    # A curve: more effort, more recall.
    curve = [row for row in rows if row["variant"] == "hnsw" and not row["tuned"]]
    efforts = [row["parameters"]["ef_search"] for row in curve]
    assert efforts == sorted(efforts) and len(efforts) > 1
    # The same again has nothing to do; another dimension has.
    benchmark(output, *flags, "--dim=8")
    assert json.loads(output.read_text())["rows"] == rows
    benchmark(output, *flags, "--dim=16")
    more = json.loads(output.read_text())["rows"]
    assert more[: len(rows)] == rows
    assert {row["dim"] for row in more[len(rows) :]} == {16}
    assert {row["variant"] for row in more[len(rows) :]} == {"exact", "hnsw"}


def test_your_own_vectors(tmp_path):
    rng = np.random.default_rng(0)
    for name, num in (("items", 900), ("queries", 300)):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(num, 12)).astype(np.float32))
    output = tmp_path / "out.json"
    files = [f"--vectors={tmp_path / 'items.npy'}", f"--queries={tmp_path / 'queries.npy'}"]
    benchmark(output, *files, "--backends=flat", "--metric=euclidean")
    row = json.loads(output.read_text())["rows"][-1]
    assert (row["set"], row["metric"], row["num_items"], row["dim"]) == (
        "items", "euclidean", 900, 12,
    )  # fmt: skip
    assert row["recall@10"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --bundle"),
        (["--noise=gaussian", "--dim=8", "--backends=hnws"], "'hnws'"),
        (["--vectors=a.npy"], "go together"),
    ],
)
def test_mistakes_are_named(flags, message, tmp_path):
    found = benchmark(tmp_path / "out.json", *flags, check=False)
    assert found.returncode and message in found.stderr
