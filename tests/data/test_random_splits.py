"""Random splits: a permutation of the rows, and histories of all training rows."""

import numpy as np
import pytest
from small_splits import dataset_of, random_data

from twotower.data.splits import make_split


def test_random_follows_the_permutation():
    dataset = random_data()
    order = np.random.default_rng(42).permutation(1000)
    test = make_split(dataset, "random", "test")
    assert test.train.tolist() == sorted(order[:800].tolist())
    keys, users = dataset.item_keys, dataset.user_rows
    for user, targets in zip(test.cases.user_id, test.cases.targets):
        row = dataset.users["user_id"].tolist().index(user)
        assert sorted(targets) == sorted(keys[order[800:]][users[order[800:]] == row])
    # 5% of the 800 are validation: 760 and 40 rows.
    validation = make_split(dataset, "random", "validation")
    assert validation.train.tolist() == sorted(order[:760].tolist())
    assert len(validation.cases.targets.values) == 40
    assert validation.history == "others"


def test_random_history_is_the_whole_training_history_by_time():
    dataset = random_data()
    split = make_split(dataset, "random", "test")
    for case in range(len(split.cases)):
        row = dataset.users["user_id"].tolist().index(split.cases.user_id[case])
        mine = split.train[dataset.user_rows[split.train] == row]
        mine = mine[np.argsort(dataset.timestamps[mine], kind="stable")]
        assert split.cases.history[case].tolist() == dataset.item_keys[mine].tolist()
        assert (np.diff(split.cases.history_time[case]) >= 0).all()
        assert not set(split.cases.history[case]) & set(split.cases.targets[case])


def test_random_asks_a_repeated_item_once():
    # Two users rated each of 30 items five times: a target can only be an item that all five
    # rows of were held out, and stands once. Where seen items are allowed all are targets.
    rows = [(user, item, time) for user in "ab" for item in range(30) for time in range(5)]
    with pytest.raises(ValueError, match="0 queries"):
        make_split(dataset_of(rows), "random", "test")
    seen = make_split(dataset_of(rows), "random-100k+seen", "test")
    assert not seen.seen_excluded and not seen.cases.exclude.values.size
    for targets in seen.cases.targets:
        assert len(targets) == len(set(targets.tolist())) > 0


def test_seeds():
    dataset = random_data()
    again, other = make_split(dataset, "random", seed=42), make_split(dataset, "random", seed=7)
    assert make_split(dataset, "random").describe() == again.describe()
    assert other.target_sha256 != again.target_sha256
    # The order is the file's where the protocol does not draw.
    loo = [make_split(dataset, "loo", seed=seed).target_sha256 for seed in (1, 2)]
    assert loo[0] == loo[1]
