"""Encoders that read events in their order: prefixes, windows, and sessions.

The SavedModels of encoders whose parts another one has too are slow.
"""

import itertools

import numpy as np
import pytest
from small_histories import ENCODERS, NAN, SHORT, answers, encoder, made, raw

from twotower.bundle.saved_models import save_tower
from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.history.config import (
    GRUConfig,
    HSTUConfig,
    MaskedTransformerConfig,
    MeanConfig,
    RecencyConfig,
    TransformerConfig,
)
from twotower.towers.history.sequence import SequenceHistory

CAUSAL = [name for name in ENCODERS if not name.startswith("masked")]


def at_all_positions(feature, row, **kwargs):
    positions = [(0, position) for position in range(len(row) + 1)]
    return feature.at(feature.encode(raw([row], **kwargs)), tf.constant(positions)).numpy()


@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_event_changes_nothing_before_it(name):
    feature, row = encoder(name), [3, 1, 4, 1, 5]
    before = at_all_positions(feature, row)
    for changed in range(len(row)):
        other = list(row)
        other[changed] = 7
        after = at_all_positions(feature, other)
        np.testing.assert_allclose(after[: changed + 1], before[: changed + 1], atol=1e-6)
        # And the test can fail: the event's own vector and those behind it do change.
        assert (np.abs(after[changed + 1 :] - before[changed + 1 :]).max(1) > 1e-4).all()


@pytest.mark.parametrize("name", CAUSAL)
def test_all_prefixes_at_once_are_each_prefix_by_itself(name):
    feature, row = encoder(name), [3, 1, 4, 1, 5]
    # Told the time, a prefix is asked at the time of the event that follows it.
    together = at_all_positions(feature, row, request=(len(row) + 1) ** 3)
    for length, vector in enumerate(together):
        alone = answers(feature, [row[:length]], request=(length + 1) ** 3, width=7)
        np.testing.assert_allclose(alone[0], vector, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_session_is_the_whole_history_encoded(name):
    feature, rng = encoder(name), np.random.default_rng(1)
    rows = [rng.integers(0, 12, 12).tolist(), rng.integers(0, 12, 12).tolist()]
    # One session begins with nothing, and the other, in the same batch, with three events.
    begun = [rows[0][:0], rows[1][:3]]
    state, vector = feature.begin(feature.encode(raw(begun, request=7)))
    np.testing.assert_allclose(vector, answers(feature, begun, request=7), atol=1e-4)
    for number in range(9):
        sofar = [rows[0][: number + 1], rows[1][: number + 4]]
        whole, request = raw(sofar, request=10_000 + number), 10_000 + number
        last = {
            key: tf.stack([whole[key][0, number], whole[key][1, number + 3]])
            for key in ("past", "past_time", "past_rating")
        }
        event = feature.encode(last | {"time": whole["time"]})
        state, vector = feature.step(state, event)
        np.testing.assert_allclose(vector, answers(feature, sofar, request=request), atol=1e-4)
    if "reread" in state:
        # A window of 6 is full after 6 events and then lets go of 2 at a time: read anew at events
        # 7, 9, ... of 9 and of 12, the first three of which came before.
        assert state["reread"].numpy().tolist() == [2, 3]


# Encoder and part of a state -> numbers that no session of two events has, at the last place.
IMPOSSIBLE = {
    ("mean", "num"): [-1.0, 0.5, 2.5, 1e38, NAN],
    ("mean, ratings", "num_rated"): [-1.0, 0.5, 3.0, 1e38],
    # g ** 0 + g ** 1 is between 1 and 2.
    ("recency", "weight"): [-1.0, 0.5, 2.1, 1e38, NAN],
    # Behind the length, too, since the encoder looks the vectors of the whole window up.
    ("attention", "items"): [-1, 14, 10**6],
}


@pytest.mark.parametrize(("name", "part"), IMPOSSIBLE)
def test_a_state_that_no_session_has_is_not_right(name, part):
    feature = encoder(name)
    state, _ = feature.begin(feature.encode(raw([[3, 1, 99], [2, 5]])))
    for number in IMPOSSIBLE[name, part]:
        values = state[part].numpy()
        values.reshape(2, -1)[1, -1] = number
        right = feature.check(state | {part: values})
        assert right.pop(part).numpy().tolist() == [True, False], number
        assert all(rows.numpy().all() for rows in right.values())


@pytest.mark.parametrize("name", ENCODERS)
def test_every_state_of_a_session_is_right(name):
    feature = encoder(name)
    state, _ = feature.begin(feature.encode(raw([[3, 1, 99], [], [4] * 7])))
    for number in range(20):
        for part, rows in feature.check(state).items():
            assert rows.numpy().all(), (part, number)
        event = feature.encode(raw([[number % 12], [5 if number % 3 else 99], [1]]))
        event = {key: v[:, 0] if v.shape.rank == 2 else v for key, v in event.items()}
        state, _ = feature.step(state, event)


def test_only_full_windows_are_read_anew(monkeypatch):
    feature = encoder("transformer")
    state, _ = feature.begin(feature.encode(raw([[3, 1], [3, 1, 4, 1, 5, 9], [2]])))
    read, reading = [], feature._read

    def counted(state, request):
        read.append(state["length"].numpy().tolist())
        return reading(state, request)

    monkeypatch.setattr(feature, "_read", counted)
    event = feature.encode({"past": tf.constant(["i7"] * 3)})
    state, vector = feature.step(state, event)
    assert read == [[5]]  # the second's, less two events and with the new one
    rows = [[3, 1, 7], [4, 1, 5, 9, 7], [2, 7]]
    np.testing.assert_allclose(vector, answers(feature, rows), atol=1e-5)
    assert state["reread"].numpy().tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_unknown_item_is_left_out(name):
    feature = encoder(name)
    seconds = [[1, 8, 27, 64, 125]]
    with_it = answers(feature, [[3, 99, 1, 99, 4]], times=seconds)
    # At the times that the others have.
    without = answers(feature, [[3, 1, 4]], times=[[1, 27, 125]])
    np.testing.assert_allclose(with_it, without, atol=1e-5)
    # One session with room for more, and one whose window of 6 is full.
    state, before = feature.begin(feature.encode(raw([[3, 1], [3, 1, 4, 1, 5, 9]], request=300)))
    unknown = {
        "past": tf.constant(["i99", ""]),
        "past_time": tf.constant([250, 250], tf.int64),
        "past_rating": tf.constant([5.0, 5.0]),
        "time": tf.constant([300, 300], tf.int64),
    }
    after, vector = feature.step(state, feature.encode(unknown))
    np.testing.assert_allclose(vector, before, atol=1e-5)
    for key in state:
        np.testing.assert_allclose(after[key], state[key], atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_odd_histories_have_an_answer(name):
    feature = encoder(name)
    # Nobody has one; one event; longer than the window; wider than any.
    nobody = answers(feature, [[], []], width=0)
    np.testing.assert_allclose(nobody, answers(feature, [[], []], width=9), atol=1e-5)
    assert np.isfinite(nobody).all()
    one, many = answers(feature, [[2]]), answers(feature, [[2] * 40])
    assert np.isfinite(one).all() and np.isfinite(many).all()
    # Equal times, and times that descend: no time has passed. The order is that of the input.
    equal = answers(feature, [[1, 2, 3]], times=[[9, 9, 9]])
    descending = answers(feature, [[1, 2, 3]], times=[[9, 8, 7]])
    if "masked" not in name:  # whose attention goes to both sides
        np.testing.assert_allclose(descending, equal, atol=1e-5)
    assert np.isfinite(equal).all() and np.isfinite(descending).all()
    # Times that are not known, of all events or of one: no time has passed either.
    unknown = answers(feature, [[1, 2, 3]], times=[[-1, -1, -1]], request=-1)
    told = answers(feature, [[1, 2, 3]], times=[[9, 9, 9]], request=9)
    np.testing.assert_allclose(unknown, told, atol=1e-5)
    one = answers(feature, [[1, 2, 3]], times=[[-1, 9, 9]], request=9)
    np.testing.assert_allclose(one, told, atol=1e-5)


ATTENTION = [TransformerConfig, MaskedTransformerConfig, HSTUConfig]


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        *itertools.product(
            [RecencyConfig, GRUConfig, *ATTENTION], ["gaps", "ratings", "request_time", "nothing"]
        ),
        *itertools.product(ATTENTION[:2], ["time_bias"]),
        *itertools.product(ATTENTION, ["positions"]),
    ],
)
def test_what_an_encoder_is_told_moves_its_vector(kind, option):
    """Only the times, only the ratings, or only the time of the request change."""
    is_attention = kind in ATTENTION
    options = {**SHORT, **({"positions": "none"} if is_attention else {})}
    if option != "nothing":
        options[option] = "absolute" if option == "positions" else True
    tf.keras.utils.set_random_seed(0)
    feature = made(kind(**options))
    inputs = raw([[3, 1, 4, 1]])

    def vector(**change):
        return feature(feature.encode({**inputs, **change})).numpy()

    before = vector()
    if is_attention:  # biases begin at zero
        for weight in feature.trainable_weights:
            weight.assign_add(np.random.default_rng(0).normal(0, 0.2, weight.shape))
        before = vector()
    changes = {
        "times": {"past_time": inputs["past_time"] * 9},
        "ratings": {"past_rating": 5.5 - inputs["past_rating"]},
        "request": {"time": inputs["time"] * 9},
    }
    moved = {
        name: np.abs(vector(**change) - before).max() > 1e-4 for name, change in changes.items()
    }
    told = {"gaps": "times", "time_bias": "times", "ratings": "ratings"}
    expected = {told.get(option)} if option != "request_time" else {"times", "request"}
    expected |= {"times"} if kind is HSTUConfig else set()  # always a bias
    assert {name for name in changes if moved[name]} == expected - {None}
    if option == "positions":
        table = feature.position_table.embeddings
        table.assign(table[::-1])
        assert np.abs(vector() - before).max() > 1e-3


@pytest.mark.parametrize("name", ["gru, all inputs", "transformer, all inputs"])
def test_a_span_that_training_never_met_counts_as_the_longest(name):
    """A user who comes back after years, of whose bucket no row ever learned."""
    feature = encoder(name)

    def vector(gap, wait):
        times = [[100, 100 + gap]]
        return feature(feature.encode(raw([[3, 5]], 100 + gap + wait, times))).numpy()

    longest, beyond = 50_000, 500_000_000
    assert np.abs(vector(longest, beyond) - vector(longest, longest)).max() > 1e-3
    # Another user's events are years away, which is no span that anybody had.
    times = Ragged.from_rows([[100, 100 + longest], [], [beyond]])
    feature.adapt(times, np.array([NAN, 4.0, NAN], np.float32))
    if name.startswith("gru"):  # a bias by time, which starts at zero, needs no such bound
        np.testing.assert_array_equal(vector(beyond, longest), vector(longest, longest))
    wait = feature.tokens(feature.window(feature.encode(raw([[3]], 100 + beyond, [[100]]))))
    same = feature.tokens(feature.window(feature.encode(raw([[3]], 100 + longest, [[100]]))))
    np.testing.assert_array_equal(wait, same)
    with pytest.raises(ValueError, match=r"0\.5 to 5\.5; these go from 1 to 10"):
        feature.adapt(Ragged.from_rows([[0, 1]]), np.array([1.0, 10.0], np.float32))


@pytest.mark.parametrize("name", [name for name in ENCODERS if "mean" not in name])
def test_events_that_left_the_window_do_not_matter(name):
    feature = encoder(name)
    feature_time = [[1, 2, 3, 4, 5, 6, 7, 8]]
    one = answers(feature, [[1, 2, 3, 4, 5, 6, 7, 8]], times=feature_time)
    other = answers(feature, [[9, 9, 3, 4, 5, 6, 7, 8]], times=feature_time)
    np.testing.assert_allclose(one, other, atol=1e-6)
    third = answers(feature, [[1, 2, 9, 4, 5, 6, 7, 8]], times=feature_time)
    assert np.abs(one - third).max() > 1e-4


@pytest.mark.parametrize("name", [name for name in CAUSAL if "mean" not in name])
def test_the_order_of_events_matters(name):
    feature = encoder(name)
    one, other = answers(feature, [[1, 2, 3]]), answers(feature, [[3, 2, 1]])
    assert np.abs(one - other).max() > 1e-3


def test_the_request_is_told_or_nothing_of_it_goes_in():
    for name in ENCODERS:
        feature = encoder(name)
        told = "time" in {spec.name for spec in feature.inputs}
        one, other = (answers(feature, [[1, 2, 3]], request=r) for r in (100, 10**7))
        assert told == getattr(feature.config, "request_time", False)
        assert (np.abs(one - other).max() > 1e-4) == told, name


@pytest.mark.parametrize("name", ENCODERS)
def test_a_config_makes_the_same_encoder(name):
    feature = encoder(name)
    if isinstance(feature, SequenceHistory):
        feature.adapt(Ragged.from_rows([[0, 5000]]), np.array([NAN, 4.0], np.float32))
        assert feature.get_config()["longest"] == 5000
    again = type(feature).from_config(feature.get_config())
    assert again.get_config() == feature.get_config() and again.inputs == feature.inputs
    encoded = again.encode(raw([[1, 2]]))
    assert again(encoded).shape == feature(encoded).shape
    again.set_weights(feature.get_weights())
    np.testing.assert_allclose(again(encoded), feature(encoded), atol=1e-6)


@pytest.mark.parametrize(
    "kind, wrong, message",
    [
        (RecencyConfig, {"half_life": 0}, "half_life must be positive; got 0"),
        (GRUConfig, {"layers": 0}, "layers must be 1 or more; got 0"),
        (GRUConfig, {"length": 0}, "length must be 1 or more"),
        (GRUConfig, {"length": 5, "stride": 6}, "stride from 1 to the length; got 5 and 6"),
        (TransformerConfig, {"dim": 8, "heads": 3}, "heads must be a divisor .* dim 8; got 3"),
        (TransformerConfig, {"heads": 0}, "heads must be 1 or more; got 0"),
        (TransformerConfig, {"positions": "sine"}, "positions must be one of"),
        (MeanConfig, {"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_wrong_sizes_are_named(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        made(kind(**wrong))


def test_hidden_events_are_asked_for_and_not_shown():
    feature = encoder("masked, all inputs")
    position = tf.constant([(0, 2)])
    one = feature.at(feature.encode(raw([[1, 2, 3]])), position).numpy()
    other = feature.at(feature.encode(raw([[1, 7, 3]])), position).numpy()
    np.testing.assert_allclose(one, other, atol=1e-6)
    # Both neighbours are seen.
    for row in ([5, 2, 3], [1, 2, 5]):
        changed = feature.at(feature.encode(raw([row])), position).numpy()
        assert np.abs(changed - one).max() > 1e-3
    # Serving asks for what comes behind the last event, as training does for a hidden last one.
    asked = feature.at(feature.encode(raw([[1, 2, 3]], request=27)), tf.constant([(0, 3)]))
    told = answers(feature, [[1, 2]], request=27)
    np.testing.assert_allclose(told, asked, atol=1e-5)


QUICK = ("mean, ratings", "gru, all inputs", "transformer, all inputs", "hstu")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in ENCODERS],
)
def test_sessions_in_a_saved_model(name, tmp_path):
    feature = encoder(name)
    tower = Tower([feature], DenseHead((), 4), name="query_tower")
    names = [spec.name for spec in tower.inputs]
    inputs = {key: value for key, value in raw([[1, 2], [3]]).items() if key in names}
    tower.embed(inputs)
    save_tower(tower, tmp_path / "tower", model_version="a")
    signatures = tf.saved_model.load(str(tmp_path / "tower")).signatures
    answer = signatures["begin"](**inputs)
    np.testing.assert_allclose(answer["embedding"], tower.embed(inputs), atol=1e-5)
    longer = raw([[1, 2], [3]])
    for number in itertools.count(3):
        rows = [[1, 2] + [5] * (number - 2), [3] + [5] * (number - 2)]
        longer = {key: value for key, value in raw(rows).items() if key in names}
        event = {
            key: value if key == "time" else tf.stack([value[0, number - 1], value[1, number - 2]])
            for key, value in longer.items()
        }
        state = {key: value for key, value in answer.items() if key != "embedding"}
        answer = signatures["step"](**state, **event)
        np.testing.assert_allclose(answer["embedding"], tower.embed(longer), atol=1e-4)
        if number == 9:
            break
    other = state | {"state_version": state["state_version"] + 1}
    with pytest.raises(tf.errors.InvalidArgumentError, match="of another training"):
        signatures["step"](**other, **event)
