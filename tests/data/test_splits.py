"""Splits: what holds for every protocol, on hand-made data."""

import dataclasses
import json

import numpy as np
import pytest
from small_splits import SMALL, dataset_of, random_data, rows_of

from twotower.data import synthetic
from twotower.data.protocols import PARTS, PROTOCOLS
from twotower.data.splits import make_split


def test_histories_carry_times_and_ratings():
    ratings = np.float32([1, 2, 3, np.nan, 5, 1, 2, 3, 4])
    cases = make_split(dataset_of(SMALL, rating=ratings), "loo", "test").cases
    assert cases.history_time[0].tolist() == [10, 20, 20]
    assert cases.history_rating[0].tolist() == [3, 1, 5]
    assert cases.history_rating.values.dtype == np.float32
    assert cases.exclude[1].tolist() == [3, 1]
    without = make_split(dataset_of(SMALL), "loo", "test").cases
    assert np.isnan(without.history_rating.values).all()


def test_time_is_told_only_where_the_name_says_so():
    dataset = dataset_of(SMALL)
    assert make_split(dataset, "loo", "test").cases.time.tolist() == [-1, -1]
    split = make_split(dataset, "loo+time", "test")
    assert split.cases.time.tolist() == [30, 15] and split.protocol == "loo+time"


def test_context_is_that_of_the_target():
    columns = {"search_text": [f"text {row}" for row in range(9)], "device": ["tv"] * 9}
    dataset = dataset_of(SMALL, **columns)
    cases = make_split(dataset, "loo", "test").cases
    assert set(cases.context) == {"search_text", "device"}  # no country in this data
    assert cases.context["search_text"].tolist() == ["text 7", "text 3"]
    # A question about many items has no one context: 20 rows, 16 train, 4 are asked.
    rows = [("a", item, item) for item in range(20)]
    split = make_split(dataset_of(rows, search_text=["text"] * 20), "random", "test")
    assert split.cases.targets.lengths.tolist() == [4]
    assert split.cases.context["search_text"].tolist() == [""]


def test_seen_targets_are_not_asked():
    # a's last row is of an item of its history; b's is not, though b saw another item twice.
    rows = [("a", i, t) for t, i in enumerate([0, 1, 2, 0])]
    rows += [("b", i, t) for t, i in enumerate([0, 0, 1, 2])]
    split = make_split(dataset_of(rows), "loo", "test")
    assert rows_of(split.cases) == [("b", [0, 0, 1], [2])]
    assert split.train.tolist() == [0, 1, 4, 5]  # and yet a's last two rows train nobody


def test_rows_that_are_not_positive_do_not_count():
    events = ["watch"] * 9
    events[7] = "impression"  # a's last row: the one before it is asked instead
    split = make_split(dataset_of(SMALL, event=events), "loo", "test")
    assert rows_of(split.cases)[0] == ("a", [1, 2], [0])
    assert 7 not in split.train
    events = ["skip"] * 9
    with pytest.raises(ValueError, match="0 training rows and 0 queries"):
        make_split(dataset_of(SMALL, event=events), "loo")


@pytest.fixture(scope="module")
def events():
    """A made-up service: of 3,000 events 1,800 are watches, the others impressions and so on."""
    config = synthetic.SyntheticConfig(num_users=100, num_items=150, num_interactions=3_000)
    return synthetic.generate(config).dataset


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("part", PARTS)
def test_impressions_never_train_and_are_never_asked(events, protocol, part):
    split = make_split(events, protocol, part)
    positive = np.flatnonzero(events.positive)
    assert 0 < len(positive) < len(events.interactions) and np.isin(split.train, positive).all()
    # Without all other rows the split is the same, but for the numbers of its rows.
    only = events.interactions.iloc[positive].reset_index(drop=True)
    alone = make_split(dataclasses.replace(events, interactions=only), protocol, part)
    assert alone.describe() == split.describe()
    np.testing.assert_array_equal(positive[alone.train], split.train)
    assert rows_of(alone.cases) == rows_of(split.cases)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("part", PARTS)
def test_training_rows_are_never_asked(protocol, part):
    dataset = random_data(num_rows=1100)
    split = make_split(dataset, protocol, part)
    trained = set(zip(dataset.user_rows[split.train], dataset.item_keys[split.train]))
    users = {user: row for row, user in enumerate(dataset.users["user_id"])}
    cases = split.cases
    asked = [
        (users[cases.user_id[case]], key)
        for case, targets in enumerate(cases.targets)
        for key in targets
    ]
    assert asked and not trained & set(asked)
    assert (cases.targets.lengths > 0).all()
    assert np.isin(cases.targets.values, split.candidates).all()
    assert (np.diff(split.train) > 0).all()
    if part == "validation" and protocol != "loo" and protocol != "loo-5core":
        refit = set(make_split(dataset, protocol, "test").train)
        assert set(split.train) < refit  # refitting uses the validation rows, too


@pytest.mark.parametrize(
    "protocol, part, message",
    [
        ("leave-one-out", "test", "unknown protocol 'leave-one-out'; there are loo-5core"),
        ("random+time", "test", "many targets, each with its time"),
        ("loo", "train", "part must be one of"),
    ],
)
def test_unknown_names(protocol, part, message):
    with pytest.raises(ValueError, match=message):
        make_split(dataset_of(SMALL), protocol, part)


@pytest.mark.parametrize("seed", [-1, 1.5, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="the split's seed must be an integer of 0 or more; got"):
        make_split(dataset_of(SMALL), "random", seed=seed)


def test_a_seed_fits_what_a_manifest_holds():
    with pytest.raises(ValueError, match="the split's seed must fit an int64; got 9223"):
        make_split(dataset_of(SMALL), "random", seed=2**63)


def test_a_seed_of_numpys_is_saved_as_pythons():
    split = make_split(dataset_of(SMALL), "loo", seed=np.int64(3))
    assert json.loads(json.dumps(split.describe()))["seed"] == 3


def test_a_split_prints_its_sizes_and_not_its_rows():
    split = make_split(dataset_of(SMALL), "loo", "test")
    assert repr(split) == "Split('loo', 'test': 5 training rows, 2 queries, 4 candidates)"


def test_describe():
    described = make_split(dataset_of(SMALL), "loo", "test").describe()
    digest = described.pop("target_sha256")
    # printf 'a 3\nb 2' | sha256sum
    assert digest == "61603fd9fe97a51b32610f2aa8c6c599961a6411427225f464e61346b86edea6"
    assert described == {
        "protocol": "loo",
        "part": "test",
        "seed": 42,
        "train_rows": 5,
        "candidates": 4,
        "cases": 2,
        "users": 2,
        "targets": 2,
        "history": "before",
        "seen_excluded": True,
    }
