"""Towers: features in, vectors out; the layers that item and query columns ask for."""

import numpy as np
import pytest
from three_films import ITEMS, QUERIES, SIZES, lengths, towers

from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.features import Id, Tags, Tokens
from twotower.towers.history.bag import MeanHistory
from twotower.towers.history.config import AttentionConfig
from twotower.towers.history.pooling import AttentionHistory
from twotower.towers.item import ItemConfig, item_tower
from twotower.towers.numbers import Clock, Number, Vector
from twotower.towers.query import QueryConfig, query_tower


def test_each_item_column_has_its_layer():
    features = ("item_id", "title", "genres", "maker", "year", "sound")
    tower = item_tower(ITEMS, ItemConfig(features, unknown_rate=0.3, **SIZES))
    kinds = [type(feature) for feature in tower.features]
    assert kinds == [Id, Tokens, Tags, Id, Number, Vector]
    item_id, title, genres, maker, year, sound = tower.features
    assert item_id.unknown_rate == 0.3 and maker.unknown_rate == 0
    assert title.vocabulary == ("moon",)  # in two titles; the other words are in one
    assert genres.vocabulary == ("drama", "war")
    assert maker.vocabulary == ("Ann", "Bob")
    assert year.quantiles[0] == 1950 and year.quantiles[-1] == 2000
    assert sound.size == 2
    assert [spec.name for spec in tower.inputs] == list(features)


def test_each_query_column_has_its_layer():
    features = ("user_id", "history", "time", "search_text", "gender")
    tower = query_tower(QUERIES, QueryConfig(features, unknown_rate=0.3, **SIZES))
    kinds = [type(feature) for feature in tower.features]
    assert kinds == [Id, MeanHistory, Clock, Tokens, Id]
    user, history, _, text, gender = tower.features
    assert user.unknown_rate == 0.3 and gender.unknown_rate == 0
    assert history.vocabulary == ("m1", "m2", "m3")
    assert text.vocabulary == ("moon",) and gender.vocabulary == ("F", "M")
    attention = query_tower(QUERIES, QueryConfig(("history",), history=AttentionConfig(), **SIZES))
    assert [type(feature) for feature in attention.features] == [AttentionHistory]


def test_unknown_features_are_named():
    with pytest.raises(ValueError, match=r"unknown item features \['colour'\]; .*'genres'"):
        item_tower(ITEMS, ItemConfig(("item_id", "colour")))
    with pytest.raises(ValueError, match=r"unknown query features \['device'\]; .*'gender'"):
        query_tower(QUERIES, QueryConfig(("device", "history")))
    with pytest.raises(TypeError, match=r"such as GRUConfig.*; got 'max'"):
        QueryConfig(("history",), history="max")
    with pytest.raises(ValueError, match="item column 'awards' holds dict"):
        item_tower(ITEMS, ItemConfig(("awards",)))


def test_vectors_have_length_one():
    tf.keras.utils.set_random_seed(0)  # of small widths a draw can leave all hidden units at zero
    for tower, raw in towers():
        vectors = tower.embed(raw).numpy()
        assert vectors.shape == (len(next(iter(raw.values()))), 4) == (len(vectors), tower.dim)
        assert vectors.dtype == np.float32
        # Unknown ids, missing numbers and the empty history included.
        np.testing.assert_allclose(lengths(vectors), 1.0, rtol=1e-5)


def test_every_feature_has_a_gradient():
    # A feature that the concatenation forgot would never learn.
    for tower, raw in towers(l2_normalise=False):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tower(tower.encode(raw), training=False) ** 2)
        gradients = tape.gradient(loss, tower.trainable_weights)
        named = {w.name: g for w, g in zip(tower.trainable_weights, gradients)}
        assert named and not [name for name, gradient in named.items() if gradient is None]


def test_inputs_must_be_distinct():
    head = DenseHead((4,), 2)
    with pytest.raises(
        ValueError, match=r"t: needs features with distinct inputs.*; got \['a', 'a'\]"
    ):
        Tower([Id("a", ["x"]), Clock("a")], head, "t")
    # The history's own further input clashes, too.
    with pytest.raises(ValueError, match=r"\['past', 'past_time', 'past_time'\]"):
        Tower([AttentionHistory("past", ["x"], AttentionConfig(2)), Clock("past_time")], head, "t")
    # TensorFlow writes the inputs of a SavedModel in small letters.
    with pytest.raises(ValueError, match=r"distinct inputs.*; got \['Title', 'title'\]"):
        Tower([Id("Title", ["x"]), Tokens("title", ["x"])], head, "t")
    with pytest.raises(ValueError, match=r"distinct inputs.*; got \[\]"):
        Tower([], head, "t")


@pytest.mark.parametrize(
    "name",
    [
        *("zip code", "k", "exclude", "state_code", "1st", "home-city", "class", "self"),
        *("K", "Exclude", "State_code", "Self"),
    ],
)
def test_inputs_must_be_arguments_of_a_saved_model(name):
    with pytest.raises(ValueError, match=rf"t: inputs \['{name}'\] cannot be arguments"):
        Tower([Id(name, ["x"])], DenseHead((4,), 2), "t")


def test_encoded_inputs_pass_through():
    for tower, raw in towers():
        encoded = tower.encode(raw)
        assert list(encoded) == [spec.name for spec in tower.inputs]
        again = tower.encode(encoded)
        # A batch may mix both: the first input encoded, the others raw.
        first = tower.inputs[0].name
        mixed = tower.encode({**raw, first: encoded[first]})
        for name in encoded:
            np.testing.assert_array_equal(again[name], encoded[name])
            np.testing.assert_array_equal(mixed[name], encoded[name])
        np.testing.assert_array_equal(tower.embed(raw), tower.embed(encoded))
        # `index` of a string input is what `encode` has for it.
        np.testing.assert_array_equal(tower.index(first, raw[first]), encoded[first])


def test_wider_padding_gives_the_same_vectors():
    _, (tower, raw) = towers()
    wide = dict(raw)
    for name, fill in (("history", ""), ("history_rating", float("nan"))):
        wide[name] = tf.pad(raw[name], [[0, 0], [0, 5]], constant_values=fill)
    np.testing.assert_allclose(tower.embed(wide), tower.embed(raw), rtol=1e-5)


def test_an_unknown_item_is_placed_by_its_other_features():
    (tower, raw), _ = towers()
    hidden = {**raw, "item_id": tf.constant(["?", "??", ""])}
    vectors, known = tower.embed(hidden).numpy(), tower.embed(raw).numpy()
    assert not np.allclose(vectors[0], known[0])  # m1 has a row of its own
    np.testing.assert_allclose(vectors[2], known[2], rtol=1e-6)  # "new" and "" share row 0
    assert not np.allclose(vectors[0], vectors[1])  # the titles differ
