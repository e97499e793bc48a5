"""Segments of a report: long histories, popular items and hidden ones."""

import dataclasses
import json

import numpy as np
import pytest
from small_cases import (
    NUM_ITEMS,
    answer_by_hand,
    by_hand,
    cases_of,
    random_split,
    split_of,
)

from twotower.evaluation import evaluate as evaluation
from twotower.evaluation.evaluate import evaluate, from_scores


def test_segments_by_hand():
    report = evaluate(answer_by_hand, by_hand(), ks=(1, 10))
    segments = report.segments
    # Histories of 1, 12 and 0 items.
    users = segments["history_length"]
    assert {name: row["num_cases"] for name, row in users.items()} == {"0": 1, "1-9": 1, "10-19": 1}
    # Rank 4 of the only target: 1 / 4. One user has no interval.
    assert users["10-19"]["mrr@500"] == {"mean": 0.25, "low": None, "high": None}
    assert set(users["0"]) == {"num_cases", "recall@10", "ndcg@10", "mrr@500"}
    # Targets 1, 3, 0, 4 have 0, 30, 6 and 400 training rows and ranks 3, 1, 4, 1.
    items = segments["item_popularity"]
    assert {name: row["num_targets"] for name, row in items.items()} == dict.fromkeys(
        ("0", "1-9", "10-99", "100-999"), 1
    )
    assert [row["recall_micro@1"]["mean"] for row in items.values()] == [0, 0, 1, 1]
    assert [row["recall_micro@10"]["mean"] for row in items.values()] == [1, 1, 1, 1]
    json.dumps({"metrics": report.metrics, "segments": report.segments}, allow_nan=False)


def test_segments_together_are_the_whole():
    split = random_split(300)
    counts = np.random.default_rng(2).integers(0, 200, NUM_ITEMS)
    split = dataclasses.replace(split, item_counts=counts)

    def score(cases):
        scores = np.random.default_rng(len(cases)).random((len(cases), NUM_ITEMS))
        scores[cases.targets.row_index, cases.targets.values] += 0.5
        return scores

    report = evaluate(from_scores(score), split)
    for kind, size, metric in (
        ("history_length", "num_cases", "recall@100"),
        ("item_popularity", "num_targets", "recall_micro@100"),
    ):
        rows = report.segments[kind].values()
        sizes = np.array([row[size] for row in rows])
        parts = np.array([row[metric]["mean"] for row in rows])
        assert len(sizes) > 2
        whole = report.metrics[metric]["mean"]
        assert (sizes * parts).sum() / sizes.sum() == pytest.approx(whole)
    assert report.segments["item_popularity"]["0"]["num_targets"] > 0  # cold items


def test_hidden_items_by_hand():
    # Items 0, 3 and 5 are hidden. Of the targets 0 | 3, 1 | 2 | 5 three are such items, of three
    # users. All get the order 4 3 2 1 0 5: ranks of hidden targets 5, 2, 6. Among themselves the
    # order is 3 0 5: ranks 2, 1, 3.
    cases = cases_of([[0], [3, 1], [2], [5]])
    split = split_of(cases, num_items=6, item_counts=np.array([0, 7, 8, 0, 0, 0]))
    split = dataclasses.replace(split, hidden=np.array([0, 3, 5]))
    scores = np.float32([1, 2, 3, 4, 5, 0])

    def among(keys):
        return from_scores(lambda asked: np.tile(scores, (len(asked), 1)), keys)

    report = evaluate(among(split.candidates), split, ks=(3, 5))
    found = report.segments["hidden_items"]
    assert found["num_targets"] == 3
    assert [found[f"recall_micro@{k}"]["mean"] for k in (3, 5)] == pytest.approx([1 / 3, 2 / 3])
    # Item 4 has no training row either, and nobody asks for it.
    assert report.segments["item_popularity"]["0"] == found
    hidden = evaluation.evaluate_hidden(among, split, report, k=2)
    assert hidden["recall@2 among hidden"]["mean"] == pytest.approx(2 / 3)
    assert hidden["chance@2 among hidden"] == pytest.approx(2 / 3)
    assert hidden["recall_micro@5 of hidden"] == found["recall_micro@5"]
    assert (hidden["num_items"], hidden["num_cases"]) == (3, 3)
    json.dumps(hidden, allow_nan=False)
    plain = dataclasses.replace(split, hidden=None)
    assert "hidden_items" not in evaluate(among(split.candidates), plain).segments
    with pytest.raises(ValueError, match="hides no items"):
        evaluation.evaluate_hidden(among, plain, report)
