"""The committed form of results: what it keeps, that every file has it, and how large they are."""

import sys

import tiny

sys.path.insert(0, str(tiny.ROOT / "experiments" / "report"))
import results

FILES = sorted(results.RESULTS.glob("*/*.json"))


def test_what_is_kept():
    entry = {"mean": 0.123456789, "low": 0.1, "high": 2000.123456}
    row = {"name": "a", "seed": 0, "metrics": {"ndcg@10": entry, "ndcg@20": entry}}
    row |= {"command": "python x.py", "segments": {"x": 1}, "versions": {"numpy": "2"}}
    kept = {"mean": 0.12346, "low": 0.1, "high": 2000.1}
    assert results.committed({"rows": [row]}) == {
        "rows": [{"name": "a", "seed": 0, "metrics": {"ndcg@10": kept}, "command": "python x.py"}]
    }
    # Figures of indexes and of new items are not a metric of a ranking at a cut-off.
    other = {"recall_new@100": 0.5, "recall@20 among hidden": 0.5, "ann_recall@100": 0.5}
    assert results.committed(other) == other


def test_every_result_is_in_its_committed_form():
    assert len(FILES) > 40
    assert not [path.name for path in FILES if results.text_of(path) != path.read_text()]


def test_all_results_together_are_small():
    assert sum(path.stat().st_size for path in FILES) < 1_000_000


def test_every_row_says_where_it_comes_from():
    """The row itself, the first row of its run, or the file."""
    for path in FILES:
        result = results.read(f"{path.parent.name}/{path.stem}")
        first = result.get("rows", [{}])[0]
        for name in ("command", "commit", "hardware", "date"):
            assert name in result or name in first, (path.name, name)
