"""Splits: hand-made data for each protocol, the published counts on MovieLens 1M.

The counts of one protocol are quick, and those of the others slow: a split of a million rows takes
seconds.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from small_splits import SMALL, dataset_of, rows_of

from twotower.data import movielens, splits, synthetic
from twotower.data.dataset import Dataset
from twotower.data.splits import make_split
from twotower.ragged import Ragged


def test_leave_one_out_by_hand():
    dataset = dataset_of(SMALL)
    test, validation = make_split(dataset, "loo", "test"), make_split(dataset, "loo")
    assert rows_of(test.cases) == [("a", [1, 2, 0], [3]), ("b", [3, 1], [2])]
    assert rows_of(validation.cases) == [("a", [1, 2], [0]), ("b", [3], [1])]
    # c has two rows only: it is not asked, and both its rows train.
    for split in (test, validation):
        assert split.train.tolist() == [0, 2, 5, 6, 8]
        assert split.candidates.tolist() == [0, 1, 2, 3]
        # Training rows 0, 2, 5, 6, 8 are of items 2, 1, 3, 0, 3.
        assert split.item_counts.tolist() == [1, 1, 1, 2]
        assert split.history == "before" and split.seen_excluded


def test_histories_carry_times_and_ratings():
    ratings = np.float32([1, 2, 3, np.nan, 5, 1, 2, 3, 4])
    cases = make_split(dataset_of(SMALL, rating=ratings), "loo", "test").cases
    assert cases.history_time[0].tolist() == [10, 20, 20]
    assert cases.history_rating[0].tolist() == [3, 1, 5]
    assert cases.history_rating.values.dtype == np.float32
    assert cases.exclude[1].tolist() == [3, 1]
    without = make_split(dataset_of(SMALL), "loo", "test").cases
    assert np.isnan(without.history_rating.values).all()


def test_ties_are_broken_by_the_file():
    # One user, one second: the last line of the file is the test target, whatever its item.
    rows = [("a", item, 9) for item in (3, 1, 0, 2)]
    assert rows_of(make_split(dataset_of(rows), "loo", "test").cases) == [("a", [3, 1, 0], [2])]
    assert rows_of(make_split(dataset_of(rows[::-1]), "loo", "test").cases) == [
        ("a", [2, 0, 1], [3])
    ]


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


@pytest.mark.parametrize("protocol", splits.PROTOCOLS)
@pytest.mark.parametrize("part", splits.PARTS)
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


def test_five_core_drops_items_with_fewer_than_five_rows():
    # Item 0 has five rows, item 1 has four. Without item 1 each user has one or two rows left
    # but u0, whose rows are of items 0, 2, 3 and 4 with five rows each.
    rows = [(f"u{user}", item, user) for user in range(5) for item in (0, 2, 3, 4)]
    rows += [(f"u{user}", 1, 100) for user in range(4)]
    five, every = (make_split(dataset_of(rows), name, "test") for name in ("loo-5core", "loo"))
    assert five.candidates.tolist() == [0, 2, 3, 4]
    assert every.candidates.tolist() == [0, 1, 2, 3, 4]
    assert rows_of(five.cases)[0] == ("u0", [0, 2, 3], [4])
    assert rows_of(every.cases)[0] == ("u0", [0, 2, 3, 4], [1])


# Times 1..20, every item five times or more, so the 0.9 quantile is 18.1: rows 18 and 19 are test.
# Of the 18 others (times 1..18) it is 16.3: rows 16 and 17 are validation.
def temporal_data(last_items=(2, 3)):
    users = ["a"] * 9 + ["b"] * 9 + ["b", "b"]
    items = [0, 1, 2, 3] * 4 + [0, 1, *last_items]
    return dataset_of([(u, i, t) for u, i, t in zip(users, items, range(1, 21))], num_items=4)


def unseen(split):
    return [(user, len(history), targets) for user, history, targets in rows_of(split.cases)]


def test_temporal_by_hand():
    # b saw all four items before the cut, so none of its test rows is a question, ...
    with pytest.raises(ValueError, match="18 training rows and 0 queries"):
        make_split(temporal_data(), "temporal-successive", "test")
    # ... but when b is two people they are: c has no training row.
    dataset = temporal_data()
    frame = dataset.interactions.copy()
    frame.loc[18:, "user_id"] = "c"
    users = pd.DataFrame({"user_id": ["a", "b", "c"]})
    dataset = Dataset("test", frame, dataset.items, users)
    successive = make_split(dataset, "temporal-successive", "test")
    assert rows_of(successive.cases) == [("c", [], [2]), ("c", [2], [3])]
    assert successive.train.tolist() == list(range(18))
    last = make_split(dataset, "temporal-last+time", "test")
    assert rows_of(last.cases) == [("c", [2], [3])]
    assert last.cases.time.tolist() == [20]


def test_a_row_at_the_quantile_itself_trains():
    # Times 0..10: the 0.9 quantile is 9, the time of c's row. Only what is younger is asked.
    users = ["a"] * 9 + ["c", "b"]
    dataset = dataset_of([(user, time % 2, time) for time, user in enumerate(users)])
    split = make_split(dataset, "temporal-successive", "test")
    assert split.train.tolist() == list(range(10))
    assert rows_of(split.cases) == [("b", [], [0])]


def test_temporal_validation_is_the_same_cut_on_the_training_rows():
    dataset = temporal_data()
    frame = dataset.interactions.copy()
    frame.loc[16:17, "user_id"] = "d"
    users = pd.DataFrame({"user_id": ["a", "b", "d"]})
    dataset = Dataset("test", frame, dataset.items, users)
    split = make_split(dataset, "temporal-successive", "validation")
    assert rows_of(split.cases) == [("d", [], [0]), ("d", [0], [1])]
    assert split.train.tolist() == list(range(16))


def random_data(num_rows=1000, num_users=20, num_items=60, seed=0):
    """Distinct (user, item) pairs at random times."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(num_users * num_items)[:num_rows]
    times = rng.integers(0, 10**6, num_rows).tolist()
    return dataset_of(
        [(f"u{p // num_items:02d}", int(p % num_items), t) for p, t in zip(pairs, times)]
    )


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


@pytest.mark.parametrize("protocol", splits.PROTOCOLS)
@pytest.mark.parametrize("part", splits.PARTS)
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


@pytest.mark.parametrize("protocol", ["loo", "loo-5core"])
def test_validation_rows_of_loo_never_train(protocol):
    dataset = random_data(num_rows=1100)
    validation, test = make_split(dataset, protocol), make_split(dataset, protocol, "test")
    np.testing.assert_array_equal(validation.train, test.train)
    # The test query has seen what validation asked.
    for asked, history in zip(validation.cases.targets, test.cases.history):
        assert history[-1] == asked[0]


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


def test_cases_take_and_batches():
    cases = make_split(dataset_of(SMALL, device=list("abcdefghi")), "loo+time", "test").cases
    swapped = cases.take([1, 0])
    assert rows_of(swapped) == rows_of(cases)[::-1]
    assert swapped.time.tolist() == [15, 30]
    assert swapped.context["device"].tolist() == cases.context["device"].tolist()[::-1]
    assert swapped.exclude is swapped.history  # one column in memory, as before
    assert rows_of(cases.take(np.array([False, True]))) == rows_of(cases)[1:]
    assert [len(part) for part in cases.batches(1)] == [1, 1]
    assert len(cases.take(np.arange(0))) == 0


def test_cases_of_unequal_columns():
    cases = make_split(dataset_of(SMALL), "loo", "test").cases
    with pytest.raises(ValueError, match="time has 1 rows for 2 requests"):
        dataclasses.replace(cases, time=np.array([1]))
    with pytest.raises(ValueError, match="history_time must have the offsets of history"):
        dataclasses.replace(cases, history_time=Ragged.from_rows([[1], [1]]))


@pytest.fixture(scope="module")
def ml_1m(ml_1m_dir):
    return movielens.load("movielens/1m", data_dir=str(ml_1m_dir))


# Training rows, candidates, cases, users and targets.
COUNTS = {
    ("loo-5core", "test"): (987_531, 3_416, 6_040, 6_040, 6_040),
    ("loo", "test"): (988_129, 3_706, 6_040, 6_040, 6_040),
    ("temporal-last", "test"): (899_650, 3_416, 1_209, 1_209, 1_209),
    ("temporal-successive", "test"): (899_650, 3_416, 99_961, 1_209, 99_961),
    ("random", "test"): (800_167, 3_706, 6_034, 6_034, 200_042),
    ("random", "validation"): (760_159, 3_706, 5_477, 5_477, 40_008),
    ("random-100k+seen", "test"): (80_000, 3_706, 4_718, 4_718, 20_000),
}


@pytest.mark.data
@pytest.mark.parametrize(
    "protocol, part",
    [
        pytest.param(*names, marks=[] if names == ("loo-5core", "test") else [pytest.mark.slow])
        for names in COUNTS
    ],
)
def test_counts_on_movielens_1m(ml_1m, protocol, part):
    split = make_split(ml_1m, protocol, part)
    found = split.describe()
    names = ("train_rows", "candidates", "cases", "users", "targets")
    assert tuple(found[name] for name in names) == COUNTS[protocol, part]
    if (protocol, part) == ("loo-5core", "test"):
        assert found["target_sha256"] == (
            "1228619ba83021b836658a32ba061e021d3a80fb0f444ba41dd4c8c932a3af2f"
        )
    if protocol == "temporal-successive":
        trained = ml_1m.interactions["user_id"].to_numpy()[split.train]
        assert len(set(split.cases.user_id) - set(trained)) == 29
        assert (split.item_counts[split.cases.targets.values] == 0).sum() == 57


@pytest.mark.data
def test_a_lost_file_order_is_refused(ml_1m):
    shuffled = ml_1m.interactions.sample(frac=1, random_state=0).reset_index(drop=True)
    lost = dataclasses.replace(ml_1m, interactions=shuffled)
    with pytest.raises(ValueError, match=r"not in the order of ratings\.dat"):
        make_split(lost, "random")
