"""Which inputs move the vector of a history: times, ratings, the request, and unknown items."""

import itertools

import numpy as np
import pytest
from small_histories import ENCODERS, NAN, SHORT, answers, encoder, made, raw

from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.towers.history.config import (
    GRUConfig,
    HSTUConfig,
    MaskedTransformerConfig,
    RecencyConfig,
    TransformerConfig,
)


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


def test_the_request_is_told_or_nothing_of_it_goes_in():
    for name in ENCODERS:
        feature = encoder(name)
        told = "time" in {spec.name for spec in feature.inputs}
        one, other = (answers(feature, [[1, 2, 3]], request=r) for r in (100, 10**7))
        assert told == getattr(feature.config, "request_time", False)
        assert (np.abs(one - other).max() > 1e-4) == told, name
