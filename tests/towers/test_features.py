"""Features of towers: each layer on a table of vectors small enough to work by hand."""

import numpy as np
import pytest
from numbered_tables import NAN, floats, numbered, run, strings, times

from twotower.tf import tf
from twotower.towers.features import Id, Tags, Tokens
from twotower.towers.history.bag import History, MeanHistory
from twotower.towers.history.config import (
    AttentionConfig,
    GRUConfig,
    HSTUConfig,
    MeanConfig,
    RecencyConfig,
    TransformerConfig,
)
from twotower.towers.numbers import Clock, Number, Vector
from twotower.towers.query import HISTORIES


def test_unknown_and_missing_ids_share_row_zero():
    feature = Id.fit("user", ["b", "a", "", "b"], dim=2)
    numbered(feature.table)
    # Sorted vocabulary a, b: rows 1 and 2.
    assert feature.vocabulary == ("a", "b")
    found = run(feature, user=strings("b", "a", "nobody", ""))
    assert found.tolist() == [[20, 2], [10, 1], [0, 0], [0, 0]]


def test_an_id_without_vocabulary_knows_nobody():
    feature = Id("user", [], dim=2)
    numbered(feature.table)
    assert run(feature, user=strings("a", "")).tolist() == [[0, 0], [0, 0]]


def test_unknown_rate_hides_ids_in_training_only():
    tf.random.set_seed(1)
    feature = Id("user", ["a"], dim=2, unknown_rate=0.3)
    numbered(feature.table)
    users = tf.repeat(strings("a"), 4000)
    hidden = (run(feature, training=True, user=users)[:, 1] == 0).mean()
    # 4,000 draws at .3: standard error .0072, four of them .029.
    assert abs(hidden - 0.3) < 0.029
    assert (run(feature, user=users) == [10, 1]).all()
    never = Id("user", ["a"], dim=2)
    numbered(never.table)
    assert (run(never, training=True, user=users) == [10, 1]).all()
    for rate in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"user: unknown_rate must be in \[0, 1\)"):
            Id("user", ["a"], unknown_rate=rate)


def test_tags_are_averaged():
    feature = Tags.fit("genres", [("drama", "war"), ("war",), ()], dim=2)
    numbered(feature.table)
    # Padding 0, unknown 1, drama 2, war 3.
    genres = strings(["drama", "war", ""], ["war", "", ""], ["", "", ""], ["noir", "war", ""])
    # (20 + 30) / 2 and (2 + 3) / 2; an empty set is zeros; an unknown tag counts: (10 + 30) / 2.
    expected = [[25, 2.5], [30, 3], [0, 0], [20, 2]]
    assert run(feature, genres=genres).tolist() == expected
    # Nobody has any: no column at all.
    assert run(feature, genres=tf.zeros([2, 0], tf.string)).tolist() == [[0, 0], [0, 0]]


def test_rare_tags_are_left_out():
    # war stands in two sets; drama twice in one, which counts once.
    values = [("drama", "drama", "war"), ("war",)]
    assert Tags.fit("genres", values, min_count=2).vocabulary == ("war",)


@pytest.mark.parametrize(
    ("feature", "raw"),
    [
        (Id("user", ["a"], dim=3), {"user": strings("?", "")}),
        (Tags("genres", ["war"], dim=3), {"genres": strings(["?"], [""])}),
        (Tokens("title", ["moon"], dim=3), {"title": strings("?", "gone")}),
        (Clock("time", 3), {"time": times(-1, -1)}),
    ],
)
def test_what_training_never_met_is_nothing_and_not_a_drawn_vector(feature, raw):
    assert (run(feature, **raw) == 0).all()
    assert feature.trainable_weights and all(
        np.abs(weight.numpy()).max() > 0 for weight in feature.trainable_weights
    )


def test_what_training_meets_starts_like_all_else():
    assert run(Id("user", ["a"], dim=3, unknown_rate=0.1), user=strings("?")).all()
    for count, expected in ((1, False), (2, True)):
        feature = Tags.fit("genres", [("war", "noir"), ("war", "")], min_count=count, dim=3)
        assert feature.has_rare == expected
        assert run(feature, genres=strings(["?"])).all() == expected


GENRES = strings(["war", "", "drama"])
PAST = {
    "past": strings(["a", "b", "?", ""]),
    "past_time": times([10, 20, 30, -1]),
    "past_rating": floats([1, 2, 3, NAN]),
}
CONFIGS = [
    (Id("user", ["a", "b"], dim=3, unknown_rate=0.25), {"user": strings("b", "?")}),
    (Tags("genres", ["drama", "war"], dim=3), {"genres": GENRES}),
    (Tokens("title", ["moon", "tin"], dim=3), {"title": strings("Tin, moon? No.")}),
    (Number("year", [1900, 1950, 2000]), {"year": floats(1960, NAN)}),
    (Clock("time", 3), {"time": times(5, -1)}),
    (Vector("sound", 2), {"sound": floats([1, 2])}),
    (MeanHistory("past", ["a", "b"], MeanConfig(3, dropout=0.5, power=0.75, ratings=True)), PAST),
]


@pytest.mark.parametrize("feature, raw", CONFIGS, ids=lambda value: type(value).__name__)
def test_a_config_makes_the_same_feature(feature, raw):
    again = type(feature).from_config(feature.get_config())
    assert again.get_config() == feature.get_config() and again.inputs == feature.inputs
    one, two = feature.encode(raw), again.encode(raw)
    assert one.keys() == two.keys() == {spec.name for spec in feature.inputs}
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert feature(one).shape == again(two).shape


@pytest.mark.parametrize("feature, raw", CONFIGS, ids=lambda value: type(value).__name__)
def test_what_is_encoded_passes_through(feature, raw):
    once = feature.encode(raw)
    assert all(values.dtype != tf.string for values in once.values())
    twice = feature.encode(once)
    for name in once:
        np.testing.assert_array_equal(once[name], twice[name])


ORDERED = {"length": 4, "stride": 2, "ratings": True}
WITHOUT_HISTORY = [feature for feature, _ in CONFIGS[:-1]]
ENCODERS = [
    HISTORIES[config.encoder]("past", ["a", "b"], config)
    for config in (
        MeanConfig(4, ratings=True),
        RecencyConfig(4),
        AttentionConfig(4),
        GRUConfig(4, gaps=True, **ORDERED),
        TransformerConfig(4, gaps=True, **ORDERED),
        HSTUConfig(4, request_time=True, **ORDERED),
    )
]


@pytest.mark.parametrize(
    "feature", [*WITHOUT_HISTORY, *ENCODERS], ids=lambda value: type(value).__name__
)
def test_a_missing_value_has_one_code_in_training_and_in_a_signature(feature):
    """As the manifest says that it is written; of a history also inside it."""
    shapes = {spec.name: [2, *(size or 3 for size in spec.shape)] for spec in feature.inputs}
    raw = {spec.name: np.full(shapes[spec.name], spec.missing) for spec in feature.inputs}
    if isinstance(feature, History):
        raw["past"] = np.array([["a", "b", ""], ["", "", ""]])  # times and ratings are missing
    raw = {spec.name: tf.constant(raw[spec.name], spec.dtype) for spec in feature.inputs}
    wanted = run(feature, **raw)
    assert np.isfinite(wanted).all()
    signature = tf.function(lambda **raw: feature(feature.encode(raw))).get_concrete_function(
        **{spec.name: spec.spec for spec in feature.inputs}
    )
    # Two programs of the same numbers: the order of their sums differs with the threads.
    np.testing.assert_allclose(signature(**raw), wanted, atol=1e-5)
    # Tables of numpy hold integers and floats of 64 bits.
    wide = {
        name: values.numpy().astype("f8" if values.dtype.is_floating else "i8")
        for name, values in raw.items()
        if values.dtype != tf.string
    }
    np.testing.assert_allclose(run(feature, **raw | wide), wanted, atol=1e-6)
