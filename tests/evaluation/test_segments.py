"""Segments by hand: who is new, who is niche, what is cold, and the figures of each."""

import json

import numpy as np
import pandas as pd
import pytest
from small_cases import cases_of, fixed

from twotower.data.dataset import Dataset
from twotower.data.splits import Split
from twotower.evaluation import segments
from twotower.evaluation.evaluate import evaluate

# 12 users watched the items 0 and 1, and u0 also 2 to 9: training rows 12, 12, 1 x 8, 0.
PAIRS = [(f"u{user}", item) for user in range(12) for item in (0, 1)]
PAIRS += [("u0", item) for item in range(2, 10)]
DATASET = Dataset(
    "by hand",
    pd.DataFrame({"user_id": u, "item_id": f"i{item:02d}", "timestamp": 1} for u, item in PAIRS),
    pd.DataFrame({"item_id": [f"i{item:02d}" for item in range(11)]}),
    pd.DataFrame({"user_id": [f"u{user}" for user in range(12)]}),
)


def split_of(users: list[str], history: list[list[int]], targets: list[list[int]]) -> Split:
    cases = cases_of(targets, history=history, users=users)
    return Split("loo", "test", 0, np.arange(len(PAIRS)), np.arange(11), "before", True, cases)


# u0 has 10 rows, u1 has 2, and nobody has a row of the stranger. Their histories have a mean of
# (2 * 12 + 8) / 10 = 3.2 and of 12 rows, and the stranger has none: of the two known ones, a fifth
# lies below 3.2 + .2 * 8.8 = 4.96. Of the targets only item 0 has 10 rows or more.
SPLIT = split_of(["u0", "u1", "stranger"], [[*range(10)], [0, 1], []], [[10], [2], [0, 4]])


def test_who_is_new_or_niche_and_what_is_cold():
    assert segments.user_counts(DATASET, SPLIT).tolist() == [10, 2, 0]
    items = np.array([12, 12, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    found = segments.segments(SPLIT.cases, np.array([10, 2, 0]), items)
    assert {name: counts.tolist() for name, counts in found.items()} == {
        "new_users": [False, True, True, True],
        "niche_users": [True, False, False, False],
        "cold_items": [True, True, False, True],
    }
    # The bounds: 9 rows are few, 10 are not.
    found = segments.segments(SPLIT.cases, np.array([9, 10, 11]), np.full(11, 9))
    assert found["new_users"].tolist() == [True, False, False, False]
    assert not found["niche_users"].any()  # all are alike
    assert found["cold_items"].all()
    assert not segments.segments(SPLIT.cases, np.zeros(3), np.full(11, 10))["cold_items"].any()


def test_figures_by_hand():
    # Ranks of the targets 10 | 2 | 0, 4 are 4 | 3 | 1, 2.
    report, other = evaluate(fixed([0, 4, 2, 10]), SPLIT), evaluate(fixed([10]), SPLIT)
    found = segments.by_segment(report, {"other": other}, DATASET, SPLIT)
    assert {name: row["num_cases"] for name, row in found.items()} == {
        "new_users": 2, "niche_users": 1, "cold_items": 3,
    }  # fmt: skip
    means = [row["ndcg@10"]["mean"] for row in found.values()]
    # 1/log2(4) and 1 | 1/log2(5) | 1/log2(5), 1/log2(4), and item 4 alone at rank 2: 1/log2(3).
    assert means == pytest.approx([0.75, 0.43068, (0.43068 + 0.5 + 0.63093) / 3], abs=1e-5)
    assert [row["recall@500"]["mean"] for row in found.values()] == [1, 1, 1]
    # The other finds item 10 alone, which u0 asks for.
    others = [row["others"]["other"]["ndcg@10"] for row in found.values()]
    assert others == pytest.approx([0, 1, 1 / 3])
    assert found["niche_users"]["ndcg@10"]["low"] is None  # one user
    assert 0.75 < found["new_users"]["ndcg@10"]["high"] <= 1
    json.dumps(found, allow_nan=False)
    text = segments.table(found, "the funnel").splitlines()
    assert text[0].split() == ["by", "segment", "queries", "the", "funnel", "other"]
    assert text[3].split() == ["niche_users", "1", "ndcg@10", "0.4307", "1.0000"]
    assert text[4].split() == ["recall@500", "1.0000", "1.0000"] and len(text) == 7


def test_a_segment_without_queries_says_so():
    split = split_of(["u0", "u0"], [[0], [1]], [[0], [1]])
    found = segments.by_segment(evaluate(fixed([0]), split), {}, DATASET, split)
    assert [*found] == ["new_users", "niche_users", "cold_items"]
    assert [*found.values()] == [{"num_cases": 0}] * 3
    assert segments.table(found, "x").splitlines()[1].split() == ["new_users", "0"]
