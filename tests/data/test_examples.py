"""Examples: what a training query may see, by hand; and that held-out rows leave no trace.

That they leave none in the examples is seen for every protocol; in the model, which is made of the
examples, for one protocol of each kind of history, and for the others in slow tests.
"""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import tiny
from asked import asked
from six_ratings import NAN, ROWS, by_hand

from twotower.data import synthetic
from twotower.data.dataset import Dataset
from twotower.data.examples import Examples, ExamplesConfig
from twotower.data.inputs import DAY, ItemInputs
from twotower.data.splits import PARTS, PROTOCOLS, Split, make_split
from twotower.objective.sampling import in_batch_probability
from twotower.tf import tf
from twotower.training.trainer import Training


def whole(dataset: Dataset, history: str, protocol: str = "") -> Split:
    """A split that trains on every row; its questions do not matter here."""
    small = make_split(dataset, "loo", "test")
    name = protocol or ("random" if history == "others" else "loo")
    train = np.arange(len(dataset.interactions))
    return dataclasses.replace(small, train=train, history=history, protocol=name)


def examples_of(history: str, dataset: Dataset | None = None, protocol: str = "", **config):
    dataset = by_hand() if dataset is None else dataset
    return Examples(dataset, whole(dataset, history, protocol), ExamplesConfig(**config))


def flat(batches) -> list[dict]:
    """One dictionary an example."""
    found = []
    for batch in batches:
        cases = batch["cases"]
        for place, query in enumerate(batch["row"]):
            found.append(
                {
                    "user": cases.user_id[query],
                    "item": int(batch["item"][place]),
                    "time": int(batch["time"][place]),
                    "weight": float(batch["weight"][place]),
                    "history": cases.history[query].tolist(),
                    "history_time": cases.history_time[query].tolist(),
                    "history_rating": cases.history_rating[query].tolist(),
                    "known_positives": batch["known_positives"][query].tolist(),
                    "request_time": int(cases.time[query]),
                    "context": {name: values[query] for name, values in cases.context.items()},
                }
            )
    return found


def by_item(batches, field) -> dict:
    """(user, item) -> a field of that example."""
    return {(one["user"], one["item"]): one[field] for one in flat(batches)}


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_before_is_strictly_the_earlier_rows(batch_size):
    examples = examples_of("before", batch_size=batch_size)
    # Row 2 is before row 3 though both are of time 20; never the other way round.
    assert by_item(asked(examples, 0), "history") == {
        ("a", 0): [],
        ("a", 1): [0],
        ("a", 2): [0, 1],
        ("a", 3): [0, 1, 2],
        ("b", 0): [],
        ("b", 1): [0],
    }
    assert by_item(asked(examples, 0), "history_time")["a", 3] == [10, 20, 20]
    ratings = by_item(asked(examples, 0), "history_rating")["a", 3]
    np.testing.assert_array_equal(ratings, [5, NAN, 3])
    # Whatever the config says, each example has a query of its own here.
    assert not examples.shared and examples.alone


def test_one_target_a_query_leaves_out_one_row():
    examples = examples_of("others", targets_per_query=1)
    assert by_item(asked(examples, 3), "history") == {
        ("a", 0): [1, 2, 3],
        ("a", 1): [0, 2, 3],
        ("a", 2): [0, 1, 3],
        ("a", 3): [0, 1, 2],
        ("b", 0): [1],
        ("b", 1): [0],
    }
    ratings = by_item(asked(examples, 3), "history_rating")["a", 0]
    np.testing.assert_array_equal(ratings, [NAN, 3, 1])


@pytest.mark.parametrize("targets_per_query", [1, 2, 8])
def test_all_rows_of_a_target_are_left_out(targets_per_query):
    # User a watches item 0 three times: its other rows would give the target away.
    dataset = by_hand([*ROWS, ("a", 0, 15, 4.0), ("a", 0, 5, 4.0)])
    examples = examples_of("others", dataset, targets_per_query=targets_per_query)
    found = flat(asked(examples, 0))
    assert sorted(one["item"] for one in found if one["user"] == "a") == [0, 0, 0, 1, 2, 3]
    assert not any(one["item"] in one["history"] for one in found)
    if targets_per_query == 1:
        histories = [one["history"] for one in found if one["user"] == "a"]
        assert sorted(histories)[-1] == [1, 2, 3] and [0, 0, 0, 2, 3] in histories


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, ([1, 1, 1, 1], [1, 1])),
        (0.25, ([1, 1, 1, 1], [1, 1])),  # one of four, and half a row of two is one
        (0.5, ([2, 2], [1, 1])),
        (0.7, ([1, 3], [2])),  # 2.8 and 1.4 rows, rounded up
    ],
)
def test_a_group_is_a_share_of_the_history(share, expected):
    examples = examples_of("others", targets_per_query=1, targets_share=share, batch_size=3)
    groups = {}
    for batch in asked(examples, 0):
        for query, user in enumerate(batch["cases"].user_id):
            groups.setdefault(user, []).append(int((batch["row"] == query).sum()))
    assert tuple(sorted(sizes) for _, sizes in sorted(groups.items())) == expected
    assert examples.alone == (share == 0)


def test_each_user_has_a_share_of_its_own(made):
    split = make_split(made, "random")
    config = ExamplesConfig(
        10_000, targets_per_query=1, targets_share=0.4, targets_share_spread=0.3
    )
    examples = Examples(made, split, config)
    many = examples.by_user.lengths >= 20
    shares = []
    for epoch in range(3):
        (batch,) = asked(examples, epoch)
        largest = np.zeros(len(many), int)
        np.maximum.at(largest, batch["user"], np.bincount(batch["row"]))
        # The first group of a user is as large as its share, rounded up.
        shares.append(largest[many] / examples.by_user.lengths[many])
    shares = np.stack(shares)
    assert 0.1 <= shares.min() < 0.2 and 0.6 < shares.max() < 0.7 + 1 / 20
    assert (shares[0] != shares[1]).mean() > 0.9  # another one each epoch
    for share, spread in ((1.0, 0.0), (0.4, 0.5), (0.6, 0.4), (0.2, -0.1), (-0.1, 0.0)):
        with pytest.raises(ValueError, match="targets_share must lie in"):
            ExamplesConfig(targets_share=share, targets_share_spread=spread)


@pytest.mark.parametrize("targets_per_query", [2, 3, 8])
def test_a_group_of_targets_is_not_in_its_history(targets_per_query):
    examples = examples_of("others", targets_per_query=targets_per_query, batch_size=3)
    sizes = {"a": [], "b": []}
    for batch in asked(examples, 0):
        cases = batch["cases"]
        assert (np.diff(batch["row"]) >= 0).all()
        for query in range(len(cases)):
            targets = batch["item"][batch["row"] == query].tolist()
            history = cases.history[query].tolist()
            # Together they are all the user's rows, each once.
            user = cases.user_id[query]
            assert sorted(targets + history) == {"a": [0, 1, 2, 3], "b": [0, 1]}[user]
            assert history == sorted(history)  # oldest first: here the items ascend with time
            sizes[user].append(len(targets))
    # Four and two rows in groups: 2 + 2 and 2 | 3 + 1 and 2 | 4 and 2.
    expected = {2: ([2, 2], [2]), 3: ([1, 3], [2]), 8: ([4], [2])}[targets_per_query]
    assert (sorted(sizes["a"]), sorted(sizes["b"])) == expected


@pytest.fixture(scope="module")
def made() -> Dataset:
    """80 users, 100 items, 2,000 events; every kind of event and context."""
    config = synthetic.SyntheticConfig(num_users=80, num_items=100, num_interactions=2_000)
    return synthetic.generate(config).dataset


@pytest.mark.parametrize("protocol", ["loo", "random"])
@pytest.mark.parametrize("batch_size, targets", [(20, 8), (64, 3), (64, 1), (10_000, 8)])
def test_every_training_row_once_an_epoch(made, protocol, batch_size, targets):
    split = make_split(made, protocol)
    config = ExamplesConfig(batch_size=batch_size, targets_per_query=targets)
    examples = Examples(made, split, config)
    batches = asked(examples, 0)
    users = np.concatenate([batch["cases"].user_id[batch["row"]] for batch in batches])
    items = np.concatenate([batch["item"] for batch in batches])
    times = np.concatenate([batch["time"] for batch in batches])
    found = sorted(zip(users, made.catalogue.ids_of(items), times))
    train = made.interactions.iloc[split.train]
    assert found == sorted(zip(train["user_id"], train["item_id"], train["timestamp"]))
    assert len(examples) == len(split.train)
    # Groups are whole, so a batch is too large or too small by less than one group.
    sizes = [len(batch["item"]) for batch in batches]
    assert all(abs(size - batch_size) < max(targets, 2) for size in sizes[:-1])
    for batch in batches:
        assert np.unique(batch["row"]).tolist() == list(range(len(batch["cases"])))


def equal(one, two) -> bool:
    """Whether two lists of batches are the same to the last bit."""
    return len(one) == len(two) and all(same_batch(a, b) for a, b in zip(one, two))


def arrays(batch: dict) -> dict[str, np.ndarray]:
    """Every array of a batch by name."""
    cases = batch["cases"]
    found = {name: batch[name] for name in ("row", "item", "time", "weight")}
    found |= {"user_id": cases.user_id, "request_time": cases.time, **cases.context}
    for name in ("history", "history_time", "history_rating", "exclude", "targets"):
        ragged = getattr(cases, name)
        found |= {name: ragged.values, f"{name}.offsets": ragged.offsets}
    return found | {
        "known_positives": batch["known_positives"].values,
        "known_positives.offsets": batch["known_positives"].offsets,
    }


def same_batch(a: dict, b: dict) -> bool:
    one, two = arrays(a), arrays(b)
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype
        and np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == "f")
        for name in one
    )


@pytest.mark.parametrize("protocol", ["loo", "random"])
def test_epochs_differ_and_seeds_repeat(made, protocol):
    def batches(epoch, seed=0):
        config = ExamplesConfig(batch_size=100, seed=seed)
        return asked(Examples(made, make_split(made, protocol), config), epoch)

    assert equal(batches(4), batches(4))
    assert not equal(batches(0), batches(1))
    assert not equal(batches(0), batches(0, seed=1))


def test_groups_change_from_epoch_to_epoch():
    examples = examples_of("others", targets_per_query=2)
    seen = {str(sorted(by_item(asked(examples, n), "history")["a", 0])) for n in range(15)}
    # Item 0 shares its query with one of 1, 2, 3: the history is the two others.
    assert seen == {"[1, 2]", "[1, 3]", "[2, 3]"}


@pytest.mark.parametrize("history", ["before", "others"])
def test_own_is_all_that_the_user_trains_with(history):
    known = by_item(asked(examples_of(history, batch_size=2), 0), "known_positives")
    assert {user: keys for (user, _), keys in known.items()} == {"a": [0, 1, 2, 3], "b": [0, 1]}
    assert len(known) == 6


def test_rows_that_do_not_train_are_in_no_history():
    dataset = by_hand()
    split = dataclasses.replace(whole(dataset, "before"), train=np.array([0, 1, 3, 5]))
    examples = Examples(dataset, split, ExamplesConfig())
    assert by_item(asked(examples, 0), "history") == {
        ("a", 0): [],
        ("a", 2): [0],
        ("a", 3): [0, 2],
        ("b", 1): [],
    }
    assert by_item(asked(examples, 0), "known_positives")["a", 0] == [0, 2, 3]


@pytest.mark.parametrize("history, expected", [("before", [1, 2]), ("others", [1, 2])])
def test_max_history_keeps_the_last_events(history, expected):
    examples = examples_of(history, targets_per_query=1, max_history=2)
    # Of the items 0, 1, 2 before (or beside) item 3; a's own positives stay all four.
    assert by_item(asked(examples, 0), "history")["a", 3] == expected
    assert by_item(asked(examples, 0), "history_time")["a", 3] == [20, 20]
    assert by_item(asked(examples, 0), "known_positives")["a", 3] == [0, 1, 2, 3]
    # Shorter ones stay as they are.
    assert by_item(asked(examples, 0), "history")["b", 1] == [0]


def test_weights_by_hand():
    # Ratings 5 4 - 3 2 1 have the mean 3; the missing one counts as that.
    weights = by_item(asked(examples_of("before", weight="rating"), 0), "weight")
    expected = [5 / 3, 4 / 3, 1, 1, 2 / 3, 1 / 3]
    found = [weights[user, item] for user, item, _, _ in ROWS]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert set(by_item(asked(examples_of("before"), 0), "weight").values()) == {1.0}
    with pytest.raises(ValueError, match="no column 'stars'"):
        examples_of("before", weight="stars")
    with pytest.raises(ValueError, match="weights from 'item_id' must be numbers; got"):
        examples_of("before", weight="item_id")
    for values in ([-1.0, 1, 1, 1, 1, 1], [0.0] * 6, [np.nan] * 6):
        with (
            warnings.catch_warnings(action="error"),  # NumPy warns of a mean of nothing
            pytest.raises(ValueError, match="must not be negative, nor all zero or missing"),
        ):
            examples_of("before", by_hand(value=np.float32(values)), weight="value")
    with pytest.raises(ValueError, match="row 2: value is inf; numbers must be finite"):
        values = np.float32([1, 1, np.inf, 1, 1, 1])
        examples_of("before", by_hand(value=values), weight="value")


def test_weights_of_other_rows_do_not_count():
    # Row 5 weighs 1 of 3 in the mean of all; without it the mean of 5 4 3 2 is 3.5.
    dataset = by_hand()
    split = dataclasses.replace(whole(dataset, "before"), train=np.arange(5))
    examples = Examples(dataset, split, ExamplesConfig(weight="rating"))
    assert by_item(asked(examples, 0), "weight")["a", 0] == pytest.approx(5 / 3.5)


def test_context_and_time_belong_to_one_example():
    device = ["tv", "web", "phone", "tv", "web", ""]
    dataset = by_hand(device=device)
    told = by_item(asked(examples_of("before", dataset, "loo+time"), 0), "request_time")
    assert told == {(user, item): time for user, item, time, _ in ROWS}
    assert set(by_item(asked(examples_of("before", dataset), 0), "request_time").values()) == {-1}
    for history, targets in (("before", 8), ("others", 1)):
        examples = examples_of(history, dataset, targets_per_query=targets)
        found = by_item(asked(examples, 0), "context")
        assert [found[user, item]["device"] for user, item, _, _ in ROWS] == device
    # Several targets share the query: it cannot have the context of each.
    shared = by_item(asked(examples_of("others", dataset, targets_per_query=2), 0), "context")
    assert {context["device"] for context in shared.values()} == {""}


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("batch_size", 0, 1),
        ("targets_per_query", 0, 1),
        ("max_history", -1, 0),
        ("stratify", -1, 0),
    ],
)
def test_sizes_have_a_least_value(field, value, least):
    with pytest.raises(ValueError, match=f"{field} must be {least} or more; got {value}"):
        examples_of("before", **{field: value})


# What held-out rows must not touch. Only the training rows are left of the interactions: no
# validation or test row, no impression, skip, like or share.
def reduced(dataset: Dataset, split: Split) -> tuple[Dataset, Split]:
    rows = dataset.interactions.iloc[split.train].reset_index(drop=True)
    return (
        dataclasses.replace(dataset, interactions=rows),
        dataclasses.replace(split, train=np.arange(len(rows))),
    )


TIMED_PROTOCOLS = [
    name + suffix
    for name in PROTOCOLS
    for suffix in ("", "+time")
    if not (suffix and name.startswith("random"))
]
LEAK_CONFIG = ExamplesConfig(batch_size=200, targets_per_query=3, max_history=20, weight="value")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("protocol", TIMED_PROTOCOLS)
def test_held_out_rows_leave_no_trace_in_the_examples(made, protocol, part):
    split = make_split(made, protocol, part)
    less, less_split = reduced(made, split)
    assert len(less.interactions) < 0.6 * len(made.interactions)
    one, two = (Examples(*data, LEAK_CONFIG) for data in ((made, split), (less, less_split)))
    assert equal(asked(one, 0), asked(two, 0))
    np.testing.assert_array_equal(*[np.asarray(e.weights) for e in (one, two)])
    probabilities = [
        in_batch_probability(examples.items, len(made.items), examples.weights)
        for examples in (one, two)
    ]
    np.testing.assert_array_equal(*probabilities)
    without_releases = made.items.drop(columns="released")
    rng = np.random.default_rng(0)
    keys = rng.integers(0, len(made.items), 3000)
    times = rng.choice(made.timestamps, 3000) + rng.integers(-5, 5 * int(DAY), 3000)
    for items in (made.items, without_releases):
        inputs = [
            ItemInputs(dataclasses.replace(data, items=items), rows, ["age", "popularity"])
            for data, rows in ((made, split.train), (less, less_split.train))
        ]
        for name in ("age", "popularity"):
            np.testing.assert_array_equal(*[each.as_of(keys, times)[name] for each in inputs])
            np.testing.assert_array_equal(*[each(keys)[name] for each in inputs])


def test_one_more_training_row_does_leave_a_trace(made):
    # The same comparison must see a single row that slipped in, or it proves nothing.
    split = make_split(made, "loo")
    held_out = np.setdiff1d(np.flatnonzero(made.positive), split.train)[0]
    leaky = dataclasses.replace(split, train=np.sort(np.append(split.train, held_out)))
    clean, dirty = (Examples(made, one, LEAK_CONFIG) for one in (split, leaky))
    assert not equal(asked(clean, 0), asked(dirty, 0))
    popularity = [
        ItemInputs(made, one.train, ["popularity"])(np.arange(len(made.items)))["popularity"]
        for one in (split, leaky)
    ]
    assert not np.array_equal(*popularity)


@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(name, marks=[] if name in ("random", "loo") else [pytest.mark.slow])
        for name in PROTOCOLS
    ],
)
def test_held_out_rows_leave_no_trace_in_the_model(made, protocol):
    context = () if protocol.startswith("random") else ("search_text", "device", "time")
    name = protocol + ("+time" if context else "")
    recipe = tiny.recipe(
        query={"features": ("user_id", "gender", "history", *context), "history_ratings": False},
        item={"features": ("item_id", "title", "genres", "maker", "year", "age", "popularity")},
        examples={"weight": "value"},
    )
    split = make_split(made, name)
    one, two = Training(made, split, recipe), Training(*reduced(made, split), recipe)
    towers = [(one.model.query_tower, two.model.query_tower)]
    towers.append((one.model.item_tower, two.model.item_tower))
    for tower, other in towers:
        for feature, twin in zip(tower.features, other.features, strict=True):
            assert feature.get_config() == twin.get_config()
    # A user or item of the held-out rows alone has no row of its own.
    trained = made.interactions.iloc[split.train]
    query, item = (pair[0].features[0].vocabulary for pair in towers)
    assert set(query) == set(trained["user_id"]) and set(item) == set(trained["item_id"])
    history = next(f for f in one.model.query_tower.features if f.name == "history")
    assert set(history.vocabulary) == set(trained["item_id"])
    np.testing.assert_array_equal(one._probability, two._probability)
    keys = made.catalogue.keys
    np.testing.assert_array_equal(one.item_vectors(keys), two.item_vectors(keys))
    batches = [list(training.batches().take(2)) for training in (one, two)]
    assert len(batches[0]) == 2
    for batch, twin in zip(*batches, strict=True):
        assert batch.item_inputs.keys() == {"age", "popularity"}
        both = (tf.nest.flatten(one, expand_composites=True) for one in (batch, twin))
        for values, others in zip(*both, strict=True):
            np.testing.assert_array_equal(values, others)


def test_whole_histories_are_all_training_rows():
    made = tiny.dataset()
    split = tiny.split("loo")
    examples = Examples(made, split, ExamplesConfig())
    cases = examples.whole_histories()
    assert len(cases) == len(made.users) and (cases.time == -1).all()
    for row in (0, 7, 100):
        rows = split.train[made.user_rows[split.train] == row]
        rows = rows[np.argsort(made.timestamps[rows], kind="stable")]
        assert cases.history[row].tolist() == made.item_keys[rows].tolist()
        assert cases.history_time[row].tolist() == made.timestamps[rows].tolist()
    short = Examples(made, split, ExamplesConfig(max_history=3)).whole_histories()
    assert short.history[7].tolist() == cases.history[7].tolist()[-3:]


def test_passed_over_by_hand():
    # User a was shown 1, 2, 3 and 4: took 1 and, later, 3; 4 came after the last training row.
    # User b only took. User c has no training row at all.
    interactions = pd.DataFrame(
        {
            "user_id": ["a", "a", "a", "a", "a", "a", "b", "c"],
            "item_id": ["1", "1", "2", "3", "3", "4", "2", "1"],
            "timestamp": [10, 11, 12, 13, 20, 30, 5, 5],
            "event": [
                "impression",
                "watch",
                "skip",
                "impression",
                "click",
                "impression",
                "watch",
                "impression",
            ],
        }
    )
    items = pd.DataFrame({"item_id": list("1234"), "title": list("1234")})
    users = pd.DataFrame({"user_id": list("abc")})
    made = Dataset("passed", interactions, items, users)
    train = np.flatnonzero(np.isin(made.interactions["event"], ["watch", "click"]))
    split = dataclasses.replace(tiny.split("loo"), train=train)
    found = Examples(made, split, ExamplesConfig()).passed_over()
    assert [made.items["item_id"].to_numpy()[row].tolist() for row in found] == [["2"], [], []]
    # Without events there is nothing to pass over.
    plain = Dataset("plain", interactions.drop(columns="event"), items, users)
    split = dataclasses.replace(split, train=np.arange(8))
    assert len(Examples(plain, split, ExamplesConfig()).passed_over().values) == 0


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


def test_the_pipeline_gives_one_epoch_after_another(made):
    """`asked`, which the tests above read, makes its batches without it."""
    recipe = tiny.recipe(examples={"batch_size": 500})
    training = Training(made, make_split(made, "random"), recipe)
    pipeline = training.batches(first_epoch=3)
    for epoch in (3, 4):
        items = [batch.targets().item.numpy().tolist() for batch in pipeline]
        assert items == [batch["item"].tolist() for batch in asked(training.examples, epoch)]


def test_without_strata_each_example_is_drawn_once():
    examples = examples_of("others", batch_size=4)
    assert examples.draws.tolist() == [1] * 6
    assert sorted(one["item"] for one in flat(asked(examples, 0))) == [0, 0, 1, 1, 2, 3]
