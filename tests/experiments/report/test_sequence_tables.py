"""Tables of sequential towers: ours over seeds, above what others report."""

import json
import sys

import pytest
import tiny

sys.path.insert(0, str(tiny.ROOT / "experiments" / "report"))
import results as result_files
import sequence_tables

ORIGIN = {"command": "python x.py", "commit": "abc", "hardware": "a box", "date": "2026-01-01"}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Writes the rows of a result file."""
    for module in (result_files, sequence_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)

    def write(name, *rows, **more):
        folder = tmp_path / ("speed" if name.startswith(("session", "tokens")) else "sequences")
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps({"rows": rows} | more))

    return write


def row(value, protocol="loo-5core", part="test", **more):
    names = sequence_tables.METRICS
    entry = {"mean": value, "low": value - 0.01, "high": value + 0.01}
    metrics = dict.fromkeys(names, entry)
    return {"name": "ours", "protocol": protocol, "part": part, "metrics": metrics} | ORIGIN | more


def test_seeds_are_averaged_and_other_protocols_left_out(results):
    results("sequence_loo_5core_0", row(0.30, seed=0))
    results("sequence_loo_5core_1", row(0.34, seed=1), row(0.9, part="validation"))
    history = {"encoder": "gru", "gaps": True, "ratings": False, "request_time": True}
    query = {"history": history}
    results("sequence_loo_time_0", row(0.8, protocol="loo+time", recipe={"query": query}))
    lines = sequence_tables.results("loo-5core").splitlines()
    assert lines[2].startswith("| ours | 0.320 ± 0.010 | 0.320 ± 0.010 |")
    assert lines[2].endswith("| here, 2 seeds: `ndcg@10` 0.300 to 0.340 |")
    assert "| 3,416 |" in lines[2]
    assert any(line.startswith("| gSASRec | 0.300 | 0.173 |  |  | 3,416 |") for line in lines)
    assert not any("HSTU-large" in line for line in lines)
    timed = sequence_tables.results("loo+time").splitlines()
    assert timed[2].startswith("| ours | 0.800 ± 0.010 |") and "HSTU-large" in timed[3]
    assert "| gaps, time of the request | here |" in timed[2]
    task = {"task": {"mask_known_positives": False}}  # another recipe, and no seed of this one
    results("sequence_loo_5core_2", row(0.1, recipe=task))
    lines = sequence_tables.results("loo-5core").splitlines()
    assert lines[2].startswith("| ours | 0.320 ") and lines[3].startswith(
        "| ours, seen items among"
    )
    results("sequence_loo_time_0", row(0.8, protocol="loo+time", **{"ann_recall@100": 0.987}))
    timed = sequence_tables.results("loo+time")
    assert "| here, `recall@100` of the index 0.987 |" in timed
    assert "other rows' commands" not in timed
    files = "`sequence_loo_5core_0.json`, `sequence_loo_5core_1.json`"
    assert f"commands stand in {files}" in sequence_tables.results("loo-5core")


def test_rows_of_one_name_are_seeds_of_one_recipe(results):
    def of(seed, **query):
        seeds = {"examples": {"seed": seed}, "fit": {"seed": seed}}  # --seed sets both
        return row(0.3, seed=seed, recipe={"query": query} | seeds)

    results("sequence_loo_5core_0", of(0, history="gru"), row(0.1, name="popularity"))
    results("sequence_loo_5core_1", of(1, history="gru"), row(0.1, name="popularity"))
    results("sequence_loo_5core_2", of(0, history="hstu"))
    gru, popularity, hstu, *_ = sequence_tables.results("loo-5core").splitlines()[2:]
    assert "2 seeds" in gru and popularity.endswith("| here |") and hstu.endswith("| here |")
    # HSTU reads times, whatever else its recipe says.
    assert "time between events" in hstu and "time between events" not in gru
    results("sequence_loo_5core_3", of(1, history="gru"))
    with pytest.raises(ValueError, match=r"core_3\.json: ours of seed 1 stands twice"):
        sequence_tables.results("loo-5core")


def test_the_curves_have_a_line_a_validation(results):
    def epoch(number, **figures):
        return {"epoch": number, "seconds": 90.0} | figures

    with pytest.raises(ValueError, match="no results/sequences/training_sequence_"):
        sequence_tables.curves()
    figures = {"hit_rate@10": 0.3, "ndcg@10": 0.2, "hit_rate@50": 0.5}
    log = [epoch(1), epoch(2, **figures), epoch(3), epoch(4, **figures | {"ndcg@10": 0.25})]
    results("training_sequence_a", protocol="loo", epoch=4, log=log, **ORIGIN)
    lines = sequence_tables.curves().splitlines()
    assert lines[2] == "| loo | 2 | 0.300 | 0.200 | 0.500 | 3 |"
    assert lines[3] == "| loo | 4 (chosen) | 0.300 | 0.250 | 0.500 | 6 |"


def test_sessions_have_a_line_an_encoder(results):
    with pytest.raises(ValueError, match="no results/speed/session_"):
        sequence_tables.sessions()
    query = {"history": {"encoder": "gru", "layers": 1, "dim": 64}}
    names = ("encode", "step", "first")
    times = [{"name": name, "p50_ms": 1.5, "p99_ms": 2.25} for name in names]
    results("session_a", *times, query=query, events=200, difference=2e-6, **ORIGIN)
    lines = sequence_tables.sessions().splitlines()
    assert lines[2] == "| gru, 1 blocks of 64 | 1.50 | 2.25 |  |  | 1.50 | 2.25 | 2 | 2e-06 |"


def test_tokens_a_second_by_epoch(results):
    # 3,000 tokens an epoch, in 2 s and in 1 s.
    log = [{"epoch": 1, "seconds": 2.0}, {"epoch": 2, "seconds": 1.0}]
    results("tokens_0", log=log, examples_per_second=2000, **ORIGIN)
    lines = sequence_tables.tokens().splitlines()
    assert lines[0] == "| tokens a second | epoch 1 | epoch 2 |"
    assert lines[2] == "| commit `abc` | 1,500 | 3,000 |"


def test_a_protocol_without_figures_of_ours(results):
    results("sequence_loo_5core_0", row(0.30, part="validation"))
    with pytest.raises(ValueError, match="test figures of loo-5core"):
        sequence_tables.results("loo-5core")


def test_the_study_has_a_line_a_change(results):
    more = {"part": "validation", "training_seconds": 120.0, "cores": 1}
    results(
        "sequences",
        row(0.2, group="base", seed=0, **more),
        row(0.1, group="input", seed=0, **more),
        row(0.4, group="base", seed=1, **more),
        row(0.9, group="base", seed=0, protocol="loo", **more),
    )
    lines = sequence_tables.study().splitlines()
    assert lines[2].startswith("| base | ours | 0.300 ± 0.010 |") and "| 2 | 2 |" in lines[2]
    assert lines[3].startswith("| input | ours | 0.100 ± 0.010 |") and "| 1 | 2 |" in lines[3]
