"""Windows of sequences: each training row is asked for once, after what came before it.

Three of the seven encoders learn in slow tests: they take the same windows as a transformer does.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import tiny
from asked import asked

from twotower.data.examples import Examples, ExamplesConfig
from twotower.data.sequences import Sequences, _without_hidden
from twotower.objective.negatives import Columns
from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.training.training import Training

LENGTH = 7
CONFIG = ExamplesConfig(batch_size=100, sequence_length=LENGTH)


def examples(protocol="loo", **options):
    config = dataclasses.replace(CONFIG, **options)
    return Examples(tiny.dataset(), tiny.split(protocol), config)


def test_windows_by_hand():
    # Users of 3, 7, 8 and 20 rows; places are counted through all of them.
    made = examples()
    made.by_user = type(made.by_user).from_lengths(np.arange(38), [3, 7, 0, 8, 20])
    windows = Sequences(made).windows(np.random.default_rng(0))
    rows = [tuple(map(int, row)) for row in zip(*windows)]
    # Short ones stay whole: from the first row, all are targets.
    assert rows[:2] == [(0, 0, 3), (3, 3, 10)]
    third, fourth = ([r for r in rows if low <= r[1] < high] for low, high in ((10, 18), (18, 38)))
    # Where the first window of the others ends is drawn; the next begins with the event before its
    # first target, and so on, 7 targets at most each.
    (start, target, stop), (start_2, target_2, stop_2) = third
    assert (start, target) == (10, 10) and stop == target_2 == start_2 + 1 and stop_2 == 18
    assert all(stop - target <= 7 for _, target, stop in rows)
    assert [target for _, target, _ in fourth[1:]] == [stop for _, _, stop in fourth[:-1]]
    assert fourth[-1][2] == 38 and fourth[0][0] == fourth[0][1] == 18
    other = Sequences(made).windows(np.random.default_rng(1))
    assert (other[0][:2] == windows[0][:2]).all() and [*other[2]] != [*windows[2]]


@pytest.mark.parametrize("protocol", ["loo", "temporal-successive+time"])
def test_each_row_is_a_target_once_after_the_events_before_it(protocol):
    made = examples(protocol)
    found = []
    for batch in asked(Sequences(made), 0):
        cases, place = batch["cases"], batch["position"]
        assert len(batch["item"]) <= 100 + LENGTH
        assert cases.history.lengths.max() <= LENGTH
        for number, (window, before) in enumerate(place):
            user = batch["user"][number]
            own = made.by_user[user]
            (at,) = [p for p in own if made.items[p] == batch["item"][number]]
            found.append(at)
            history = cases.history[window][:before]
            # The `before` last of the user's rows before this one, in their order.
            assert history.tolist() == made.items[at - before : at].tolist()
            times = cases.history_time[window][:before]
            assert times.tolist() == made.times[at - before : at].tolist()
            assert made.user_ids[user] == cases.user_id[window]
            before_all = batch["known_positives"][window][: batch["num_earlier"][number]]
            assert before_all.tolist() == made.items[own[own < at]].tolist()
            assert batch["time"][number] == made.times[at]
            told = made.times[at] if "+time" in protocol else -1
            assert batch["request_time"][number] == told
    assert sorted(found) == list(range(len(made)))


def test_batches_hold_windows_of_like_length_and_change_with_the_epoch():
    sequences = Sequences(examples())
    first, again, second = (asked(sequences, epoch) for epoch in (0, 0, 1))
    for one, other in zip(first, again):
        assert (one["item"] == other["item"]).all() and (one["position"] == other["position"]).all()
    assert [*first[0]["item"]] != [*second[0]["item"]]
    # Less than a quarter of the padded places holds nothing.
    padded = sum(b["cases"].history.to_dense(-1).size for b in first)
    assert sum(len(b["cases"].history.values) for b in first) > 0.75 * padded
    # Order at random: batches of short windows are not all first.
    longest = [b["cases"].history.lengths.max() for b in first]
    assert longest != sorted(longest)


def test_cloze_asks_for_some_events_and_always_for_the_last():
    made = examples(hidden_share=0.3)
    hidden = windows = 0
    for batch in asked(Sequences(made, is_causal=False), 0):
        history, place = batch["cases"].history, batch["position"]
        # Token p is event p - 1 of the window, which holds what is asked for.
        found = history.values[history.offsets[place[:, 0]] + place[:, 1] - 1]
        assert (found == batch["item"]).all()
        last = {(row, length) for row, length in enumerate(history.lengths)}
        assert last <= set(map(tuple, place.tolist()))
        assert len(set(map(tuple, place.tolist()))) == len(place)
        hidden, windows = hidden + len(place) - len(history), windows + len(history)
    # Each row is in one window; of those that are not its last, some thousand:
    assert 0.27 < hidden / (len(made) - windows) < 0.33


def test_a_cloze_does_not_show_what_it_asks_for():
    """Where users take items again, as those of ML-1M do not."""
    made = examples(hidden_share=0.3)
    made.items = made.items.copy()
    repeated = 0
    for row in made.by_user:
        made.items[row] = made.items[row[np.arange(len(row)) // 2 * 2]]  # each item twice
    for batch in asked(Sequences(made, is_causal=False), 0):
        history, place = batch["cases"].history, batch["position"]
        hidden = history.offsets[place[:, 0]] + place[:, 1] - 1
        shown = np.setdiff1d(np.arange(len(history.values)), hidden)
        shown = set(zip(history.row_index[shown].tolist(), history.values[shown].tolist()))
        assert not shown & set(zip(place[:, 0].tolist(), batch["item"].tolist()))
        repeated += len(hidden) - len(set(zip(place[:, 0].tolist(), batch["item"].tolist())))
    assert repeated > 100


def test_hidden_events_have_the_time_of_what_is_seen_before_them():
    times = Ragged.from_rows([[10, 20, 30], [40, 50, 60, 70], [80]])
    hidden = np.array([True, False, True, False, True, True, False, True])
    # The first takes that of the next one seen; the last, and neighbours, of the last one seen; a
    # window of which all is hidden has none.
    assert _without_hidden(times, hidden).tolist() == [20, 20, 20, 40, 40, 40, 70, 0]


@pytest.mark.parametrize(
    "protocol, options, message",
    [
        ("random", {}, "random does not ask"),
        ("loo", {"stratify": 0.5}, "set stratify=0"),
        ("loo", {"max_history": 5}, "set max_history=0"),
        ("loo", {"hidden_share": 0.0}, "hidden_share must lie between"),
        ("loo", {"hidden_share": 0.5}, "this encoder hides no events"),
        ("loo", {"sequence_length": -1}, "sequence_length"),
        ("loo", {"batch_size": LENGTH - 1}, rf"a window has up to {LENGTH}; got {LENGTH - 1}"),
    ],
)
def test_what_cannot_be_is_named(protocol, options, message):
    with pytest.raises(ValueError, match=message):
        Sequences(examples(protocol, **options))


SEQUENTIAL = tiny.recipe(
    query={
        "features": ("history",),
        "history": "transformer",
        "history_length": LENGTH,
        "history_stride": 2,
    },
    task={"correction": "none", "mask_known_positives": False},
    negatives={"negatives": ("catalogue",)},
    examples={"sequence_length": LENGTH, "batch_size": 200},
)


@pytest.mark.parametrize(
    "history",
    [
        *("mean", "transformer", "masked_transformer", "hstu"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("recency", "attention", "gru")),
    ],
)
def test_every_encoder_learns_from_all_prefixes(history):
    # A mean reads all events, of which more batches are needed.
    examples = {"batch_size": 500} if history == "mean" else {}
    recipe = tiny.recipe(SEQUENTIAL, query={"history": history}, examples=examples)
    training = Training(tiny.dataset(), tiny.split("loo"), recipe)
    training.model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
    batches = itertools.islice(training.batches(), 12)
    losses = [float(training.model.train_step(batch)["loss"]) for batch in batches]
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.2


def test_a_mean_is_asked_with_whole_histories_and_learns_from_them():
    recipe = tiny.recipe(SEQUENTIAL, query={"history": "mean"}, examples={"batch_size": 500})
    training = Training(tiny.dataset(), tiny.split("loo"), recipe)
    lengths = training.examples.by_user.lengths
    _, target, stop = training.sequences.windows(np.random.default_rng(0))
    assert lengths.max() > LENGTH and sorted(stop - target) == sorted(lengths[lengths > 0])


@pytest.mark.parametrize("size", [LENGTH, LENGTH + 1, 100])
def test_every_epoch_has_as_many_batches(size):
    made = examples(batch_size=size)
    sequences = Sequences(made)
    numbers = [len(sequences.epoch(epoch).batches) - 1 for epoch in range(4)]
    assert numbers == [-(-len(made) // size)] * 4


def test_a_sequence_of_one_query_is_what_an_example_is():
    """The loss of windows of one target equals that of examples, whose histories are cut alike."""
    losses = {}
    for length, cut in ((0, 1), (1, 0)):
        recipe = tiny.recipe(
            SEQUENTIAL,
            query={"history": "gru", "history_length": 1, "history_stride": 1},
            examples={"sequence_length": length, "max_history": cut, "batch_size": 10**6},
        )
        training = Training(tiny.dataset(), tiny.split("loo"), recipe)
        (batch,) = training.batches()
        losses[length] = float(training.model.compute_loss(batch))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "history, protocol, told",
    [
        ("transformer", "loo", False),
        ("transformer", "loo+time", True),
        ("masked_transformer", "loo+time", True),
        ("masked_transformer", "loo+time", False),
    ],
)
def test_the_time_of_a_target_reaches_a_tensor_only_where_it_is_told(history, protocol, told):
    """A protocol may tell it, and the encoder not read it. (How old an item is, `timed`, is told of
    every column as of its own example.)"""
    query = {"history": history, "history_gaps": True, "history_request_time": told}
    split = tiny.split(protocol)

    def tensors(shift):
        training = Training(tiny.dataset(), split, tiny.recipe(SEQUENTIAL, query=query))
        made = training.examples
        # The last event of each user, which is nobody's history, comes later.
        made.times = made.times.copy()
        made.times[made.by_user.offsets[1:][made.by_user.lengths > 0] - 1] += shift
        return [batch.query for batch in training.batches()]

    same = [
        (one[name] == other[name]).numpy().all()
        for one, other in zip(tensors(0), tensors(86_400))
        for name in one
    ]
    assert len(same) > 10 and all(same) != told


@pytest.mark.parametrize(
    "negatives",
    [("catalogue",), ("batch", "uniform"), ("batch", "memory")],
)
def test_what_came_before_is_no_negative(negatives):
    """And among the items of a batch, where they are for certain, what comes after is none."""
    sizes = {"num_sampled": 50} if "uniform" in negatives else {}
    sizes |= {"memory_size": 64} if "memory" in negatives else {}
    recipe = tiny.recipe(
        SEQUENTIAL,
        task={
            "mask_known_positives": True,
            "correction": "none" if negatives == ("catalogue",) else "log_q_masked",
        },
        negatives={"negatives": negatives, **sizes},
    )
    training = Training(tiny.dataset(), tiny.split("loo"), recipe)
    batch = next(iter(training.batches()))
    targets, keys = batch.targets(), tf.range(training.model.num_items)
    if negatives != ("catalogue",):
        keys = tf.unique(targets.item).y[::-1]
    columns = Columns(keys, tf.zeros_like(keys, tf.float32))
    made, owned = training.examples, training.model._known(batch, targets, columns).numpy()
    assert owned.shape == (len(targets.item), len(keys)) and 0 < owned.mean() < 0.5
    events = asked(training.sequences, 0)[0]
    for number, item in enumerate(targets.item.numpy()):
        rows = made.by_user[events["user"][number]]
        seen = [made.items[at] for at in rows[: list(made.items[rows]).index(item)]]
        if negatives != ("catalogue",):
            seen = events["known_positives"][events["position"][number, 0]]
        assert set(keys.numpy()[owned[number]]) == set(seen) & set(keys.numpy())
    model = training.model
    model.compile(optimizer="adam")
    # A memory is empty at the first step and holds some items at the second.
    assert all(np.isfinite(float(model.train_step(batch)["loss"])) for _ in range(2))


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"query": {"features": ("user_id",)}}, "needs the query feature 'history'"),
        ({"examples": {"sequence_length": LENGTH + 1}}, "Set both alike"),
        ({"examples": {"sequence_length": LENGTH - 1}}, "Set both alike"),
        ({"query": {"history_request_time": True}}, "history_request_time needs a protocol"),
        (
            {"query": {"shared": "item_embedding", "history_dim": 32}},
            "a history of dim 32 cannot share the item tower's vectors, whose length is 16",
        ),
        (
            {
                "query": {"history": "hstu"},
                "examples": {"sequence_length": LENGTH - 1},
            },
            "distances past sequence_length never learn",
        ),
    ],
)
def test_recipes_that_cannot_train_on_sequences(parts, message):
    with pytest.raises(ValueError, match=message):
        Training(tiny.dataset(), tiny.split("loo"), tiny.recipe(SEQUENTIAL, **parts))
