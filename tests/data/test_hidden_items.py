"""Items whose training rows are hidden: new items, whose answers are known."""

import numpy as np
import pytest
from small_splits import SMALL, dataset_of

from twotower.data import synthetic
from twotower.data.protocols import PARTS, PROTOCOLS
from twotower.data.splits import hide_items, make_split, only_hidden


def test_hidden_items_have_no_training_row_and_stay_candidates():
    dataset = dataset_of(SMALL)
    split = make_split(dataset, "loo", "test")
    hidden = hide_items(dataset, split, 0.5)
    assert len(hidden.hidden) == round(0.5 * len(split.candidates))
    assert set(hidden.hidden) < set(split.candidates)
    # Of the items that are hidden no row is left, of all others every row.
    is_hidden = np.isin(dataset.item_keys[split.train], hidden.hidden)
    assert hidden.train.tolist() == split.train[~is_hidden].tolist()
    assert is_hidden.any() and not is_hidden.all()
    assert (
        hidden.item_counts
        == np.bincount(dataset.item_keys[hidden.train], minlength=len(dataset.items))
    ).all()
    assert (hidden.candidates == split.candidates).all() and hidden.cases is split.cases
    assert (hide_items(dataset, split, 0.5).train == hidden.train).all()
    assert (hide_items(dataset, split, 0.5, seed=1).hidden != hidden.hidden).any()
    assert hide_items(dataset, split, 0.0) is split and split.hidden is None
    with pytest.raises(ValueError, match="share of items to hide"):
        hide_items(dataset, split, 1.0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_parts_of_a_split_hide_the_same_items(protocol):
    """What validation selects on, a refit must not see, and test must ask."""
    config = synthetic.SyntheticConfig(num_users=300, num_items=400, num_interactions=6_000)
    dataset = synthetic.generate(config).dataset
    parts = [make_split(dataset, protocol, part) for part in PARTS]
    validation, test = (hide_items(dataset, part, 0.1) for part in parts)
    assert validation.hidden.tolist() == test.hidden.tolist()
    assert len(test.hidden) == round(0.1 * len(test.candidates))
    for whole, part in zip(parts, (validation, test)):
        assert not np.isin(dataset.item_keys[part.train], test.hidden).any()
        # A tenth of the items of the training rows, too, as far as chance goes.
        known = np.unique(dataset.item_keys[whole.train])
        share = np.isin(known, test.hidden).mean()
        assert abs(share - 0.1) < 4 * (0.1 * 0.9 / len(known)) ** 0.5


def test_only_hidden_asks_for_the_hidden_items_among_themselves():
    dataset = synthetic.generate(synthetic.SMALL).dataset
    split = hide_items(dataset, make_split(dataset, "random", "test"), 0.1)
    asked = only_hidden(split)
    assert asked.candidates.tolist() == split.hidden.tolist()
    expected = {
        user: sorted(set(row.tolist()) & set(split.hidden.tolist()))
        for user, row in zip(split.cases.user_id, split.cases.targets)
    }
    expected = {user: row for user, row in expected.items() if row}
    assert expected and len(expected) <= len(split.cases)
    assert list(asked.cases.user_id) == list(expected)
    assert [sorted(row.tolist()) for row in asked.cases.targets] == list(expected.values())
    rows = [list(split.cases.user_id).index(user) for user in expected]
    assert asked.cases.history.values.tolist() == split.cases.history.take(rows).values.tolist()
    with pytest.raises(ValueError, match="hides no items"):
        only_hidden(make_split(dataset, "random", "test"))
