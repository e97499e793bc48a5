"""Encoders that read events in their order: prefixes, windows, hidden events, and their configs."""

import numpy as np
import pytest
from small_histories import ENCODERS, NAN, answers, encoder, made, raw

from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.towers.history.config import (
    GRUConfig,
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
        (RecencyConfig, {"half_life": 0}, "half_life must be positive and finite; got 0"),
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
