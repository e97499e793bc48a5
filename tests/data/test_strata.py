"""Stratified sampling: how often an example is drawn in an epoch."""

import numpy as np
import pytest
from asked import asked, flat
from six_ratings import examples_of


def test_stratified_sampling_by_hand():
    # Items 0 and 1 have two of the six rows each, 2 and 3 one: with a = 1 each item is drawn 6 / 4
    # times an epoch, and what an example is drawn more often it weighs less.
    examples = examples_of("before", stratify=1.0)
    assert examples.items.tolist() == [0, 1, 2, 3, 0, 1]
    assert examples.draws.tolist() == pytest.approx([0.75, 0.75, 1.5, 1.5, 0.75, 0.75])
    assert (examples.draws * examples.weights).tolist() == pytest.approx([1.0] * 6)
    # With 1/2: in proportion to 1 / sqrt(2) and 1.
    half = examples_of("before", stratify=0.5).draws
    assert half[2] / half[0] == pytest.approx(2**0.5) and half.sum() == pytest.approx(6)


@pytest.mark.parametrize("history", ["before", "others"])
def test_stratified_epochs(history):
    examples = examples_of(history, stratify=1.0, batch_size=4, targets_per_query=2)
    drawn = []
    for epoch in range(400):
        targets = examples.epoch(epoch).targets
        assert len(targets.values) == 6  # as many as there are
        assert targets.lengths.min() > 0  # a query without an example would cost and teach nothing
        users = examples.user_ids[examples.users[targets.values]]
        drawn += zip(users, examples.items[targets.values].tolist())
    for one in flat([batch for epoch in range(3) for batch in asked(examples, epoch)]):
        assert one["item"] not in one["history"]
    users = {"a": [0, 1, 2, 3], "b": [0, 1]}
    for user, items in users.items():
        for item in items:
            expected = 0.75 if item < 2 else 1.5
            assert drawn.count((user, item)) / 400 == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("history", ["before", "others"])
def test_draws_of_an_example_come_into_different_batches(history):
    """Else a rare item would be many columns of one batch, and no column of the others."""
    examples = examples_of(history, stratify=1.0, batch_size=1)
    examples.draws = np.array([0.0, 0.0, 6.0, 0.0, 0.0, 0.0])
    batches = asked(examples, 0)
    assert [batch["item"].tolist() for batch in batches] == [[2]] * 6


def test_without_strata_each_example_is_drawn_once():
    examples = examples_of("others", batch_size=4)
    assert examples.draws.tolist() == [1] * 6
    assert sorted(one["item"] for one in flat(asked(examples, 0))) == [0, 0, 1, 1, 2, 3]
