"""A split and a dataset that do not belong together are refused, through every door."""

import dataclasses

import numpy as np
import pytest
from small_splits import SMALL, dataset_of

from twotower.data import splits, synthetic
from twotower.data.splits import hide_items, make_split
from twotower.evaluation.evaluate import evaluate
from twotower.evaluation.segments import by_segment
from twotower.evaluation.variety import variety
from twotower.funnel.making import FunnelConfig, make_funnel
from twotower.ranking import making as ranking
from twotower.trainer import Trainer
from twotower.training.defaults import recipe_for
from twotower.training.recipe import Recipe
from twotower.training.training import Training


def test_a_split_of_other_data_of_the_same_size_is_refused():
    """Its rows would be other interactions, and no size would tell."""
    config = dataclasses.replace(synthetic.SMALL, seed=1)
    mine, other = (synthetic.generate(c).dataset for c in (synthetic.SMALL, config))
    assert len(mine.interactions) == len(other.interactions)
    split = make_split(mine, "loo")
    split.require_of(mine)
    for door in (
        lambda: split.require_of(other),
        lambda: Trainer(other, split),
        lambda: hide_items(other, split, 0.1),
        lambda: splits.with_validation_rows(other, split),
        lambda: evaluate(None, split, other),  # asks nothing, and neither do these
        lambda: recipe_for(other, split),
        lambda: Training(other, split, Recipe()),
        lambda: make_funnel(FunnelConfig({"popularity": 5}), None, other, split),
        lambda: ranking.train(ranking.RankingConfig(), None, None, other, split),
        lambda: ranking.Trained([], None, (), {}, {}).on(None, other, split),
        lambda: by_segment(None, {}, other, split),
        lambda: variety(None, other, split),
    ):
        with pytest.raises(ValueError, match=r"item '.*' has \d+ training rows") as raised:
            door()
        assert "split of other data. Take make_split of this dataset." in str(raised.value)


def test_a_split_of_its_own_data_is_let_through():
    dataset = dataset_of(SMALL)
    split = make_split(dataset, "loo", "test")
    cases = split.cases
    fewer = dataclasses.replace(split, train=split.train[:3], item_counts=None)
    for mine in (
        # New users, whom no dataset has; and users whose names nobody knows.
        dataclasses.replace(split, cases=cases.as_new_users(1)),
        dataclasses.replace(
            split, cases=dataclasses.replace(cases, user_id=np.full(len(cases), "", object))
        ),
        dataclasses.replace(split, cases=cases.take(np.arange(0))),
        fewer,
        dataclasses.replace(split, item_counts=split.item_counts.tolist()),
        dataclasses.replace(split, item_counts=split.item_counts.astype(float)),
        hide_items(dataset, split, 0.5),
        dataclasses.replace(split, train=split.train.astype(np.uint32)),
        dataclasses.replace(split, train=split.train[:0], item_counts=None),
    ):
        mine.require_of(dataset)
    # Rows that came after the split was made are none of its rows.
    longer = dataset_of([*SMALL, ("d", 1, 99)])
    split.require_of(longer)
    with pytest.raises(ValueError) as raised:
        dataclasses.replace(fewer, item_counts=split.item_counts).require_of(dataset)
    # SMALL has nine rows, of which the queries of a and b take four.
    assert str(raised.value) == (
        "the split's item_counts count 5 training rows, and its train has 3. With other training "
        "rows, give item_counts=None."
    )
    for wrong, message in (
        (dataset_of(SMALL[:5], num_items=4), "needs 4 items and 9 rows or more, and test has 4"),
        (dataset_of(SMALL, num_items=5), "needs 4 items and 9 rows or more, and test has 5 items"),
    ):
        with pytest.raises(ValueError, match=message):
            split.require_of(wrong)
