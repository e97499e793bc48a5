"""The table of segments, from a result that has them and from one that does not."""

import sys

import tiny

sys.path.insert(0, str(tiny.ROOT / "experiments" / "report"))
import funnel_tables


def test_segments_are_shown_if_the_result_has_them():
    metrics = {"ndcg@10": {"mean": 0.4}, "recall@500": {"mean": 0.8}}
    row = {"metrics": metrics, "alone": {"ease": {**metrics, "ndcg@10": {"mean": 0.3}}}}
    assert funnel_tables.segments(row) == ""
    others = {"ease": {"ndcg@10": 0.05, "recall@500": 0.5}}
    niche = {"num_cases": 1207, "ndcg@10": {"mean": 0.1}, "recall@500": {"mean": 0.6}}
    row["by_segment"] = {"new_users": {"num_cases": 0}, "niche_users": {**niche, "others": others}}
    lines = funnel_tables.segments(row).strip().splitlines()
    assert lines[2:7] == [
        "| all |  | `ndcg@10` | 0.400 | 0.300 |",
        "|  |  | `recall@500` | 0.800 | 0.800 |",
        "| new users | 0 |  |  |  |",
        "| niche users | 1,207 | `ndcg@10` | 0.100 | 0.050 |",
        "|  |  | `recall@500` | 0.600 | 0.500 |",
    ]
    assert lines[0].count("|") == lines[2].count("|") == lines[4].count("|")
