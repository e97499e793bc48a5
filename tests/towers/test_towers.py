"""Towers: features in, vectors out; the layers that item and query columns ask for."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.features import Id, Tags, Tokens
from twotower.towers.history.bag import MeanHistory
from twotower.towers.history.config import AttentionConfig, GRUConfig, MeanConfig
from twotower.towers.history.pooling import AttentionHistory
from twotower.towers.item import ItemConfig, item_tower
from twotower.towers.numbers import Clock, Number, Vector
from twotower.towers.query import QueryConfig, query_tower

# Three made-up films, with a column of every kind that items can have.
ITEMS = pd.DataFrame(
    {
        "item_id": ["m1", "m2", "m3"],
        "title": ["Tin Moon", "Brass Moon", "Ferry"],
        "genres": [("drama", "war"), ("drama",), ()],
        "maker": ["Ann", "Bob", "Ann"],
        "year": [1950, 1999, 2000],
        "sound": [np.array([1.0, 2.0]), np.array([0.0, 1.0]), np.array([3.0, 3.0])],
        "awards": [{}, {}, {}],
    }
)
RAW_ITEMS = {
    "item_id": tf.constant(["m1", "m3", "new"]),
    "title": tf.constant(["Tin Moon", "Ferry", ""]),
    "genres": tf.constant([["drama", "war"], ["", ""], ["drama", ""]]),
    "maker": tf.constant(["Ann", "Cid", ""]),
    "year": tf.constant([1950.0, 2000.0, float("nan")]),
    "sound": tf.constant([[1.0, 2.0], [3.0, 3.0], [float("nan")] * 2]),
}
QUERIES = {
    "user_id": np.array(["a", "b"], object),
    "history": np.array(["m1", "m2", "m3"], object),
    "time": np.array([5, 6]),
    "search_text": np.array(["tin moon", "moon", ""], object),
    "gender": np.array(["F", "M"], object),
}
RAW_QUERIES = {
    "user_id": tf.constant(["a", "nobody"]),
    "history": tf.constant([["m1", "m3"], ["", ""]]),
    "history_time": tf.constant([[5, 9], [-1, -1]], tf.int64),
    "history_rating": tf.constant([[5.0, 1.0], [float("nan")] * 2]),
    "time": tf.constant([1_000_000_000, -1], tf.int64),
    "search_text": tf.constant(["moon", ""]),
    "gender": tf.constant(["F", ""]),
}
SIZES = {"hidden": (16, 8), "dim": 4}


def lengths(vectors):
    return np.linalg.norm(vectors, axis=1)


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


RATED = MeanConfig(ratings=True)


def towers(**options):
    """An item and a query tower with all features, and their raw inputs."""
    items = item_tower(ITEMS, ItemConfig(tuple(RAW_ITEMS), **SIZES | options))
    features = ("user_id", "history", "time", "search_text", "gender")
    queries = query_tower(QUERIES, QueryConfig(features, history=RATED, **SIZES | options))
    return (items, RAW_ITEMS), (queries, RAW_QUERIES)


def test_vectors_have_length_one():
    tf.keras.utils.set_random_seed(0)  # of small widths a draw can leave all hidden units at zero
    for tower, raw in towers():
        vectors = tower.embed(raw).numpy()
        assert vectors.shape == (len(next(iter(raw.values()))), 4) == (len(vectors), tower.dim)
        assert vectors.dtype == np.float32
        # Unknown ids, missing numbers and the empty history included.
        np.testing.assert_allclose(lengths(vectors), 1.0, rtol=1e-5)


def siamese(shared="tower", features=("history",), items=("item_id",), **options):
    tower = item_tower(ITEMS, ItemConfig(items, id_dim=6, unknown_rate=0.0, **SIZES))
    config = QueryConfig(features, shared=shared, **SIZES | options)
    return tower, query_tower(QUERIES, config, tower)


def test_one_tower_for_both_sides():
    items, queries = siamese()
    ids = np.array(["m1", "m2", "m3"])
    # A history of one event is that event, as the item tower sees it.
    alone = queries.embed({"history": ids[:, None]}).numpy()
    np.testing.assert_allclose(alone, items.embed({"item_id": ids}).numpy(), atol=1e-6)
    assert {id(w) for w in queries.weights} == {id(w) for w in items.weights}
    # Padding and unknown ids count for nothing, though the shared table has no row for padding.
    padded = queries.embed({"history": [["m1", "", ""], ["m1", "what", ""]]}).numpy()
    np.testing.assert_allclose(padded, alone[[0, 0]], atol=1e-6)


@pytest.mark.parametrize("history", [MeanConfig(), AttentionConfig()])
def test_one_table_for_both_sides(history):
    items, queries = siamese("item_embedding", history=history, items=("item_id", "year"))
    assert queries.features[0].table is items.features[0].table and queries.head is not items.head
    assert queries.features[0].dim == 6
    raw = {"history": [["m2", "m1"]], "history_time": [[1, 2]]}
    raw = {spec.name: raw[spec.name] for spec in queries.inputs}
    before = queries.embed(raw).numpy()
    table = items.features[0].table
    at = items.features[0].vocabulary.index("m2") + 1  # row 0 is that of unknown ids
    change = np.zeros(table.embeddings.shape, np.float32)
    change[at] = 1.0
    table.embeddings.assign_add(change)
    assert np.abs(queries.embed(raw).numpy() - before).max() > 1e-3
    other = raw | {"history": [["m3", "m1"]]}
    after = queries.embed(other).numpy()
    table.embeddings.assign_sub(change)
    np.testing.assert_array_equal(queries.embed(other).numpy(), after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": "all"}, "one of .*; got 'all'"),
        ({"items": ("year",)}, r"needs item_id .*; got \['year'\] and \['history'\]"),
        ({"features": ("user_id",)}, "and the query tower history"),
        ({"features": ("user_id", "history")}, "inputs of one length"),
        ({"items": ("item_id", "year")}, "inputs of one length"),
        ({"history": AttentionConfig()}, "got .* and attention"),
        ({"history": RATED}, "longer than the item's"),
        ({"history": MeanConfig(dim=256)}, "dim 256 cannot share .* whose length is 6"),
    ],
)
def test_what_cannot_be_shared(options, message):
    with pytest.raises(ValueError, match=message):
        siamese(**options)


def test_vectors_of_any_length():
    tf.keras.utils.set_random_seed(0)
    for tower, raw in towers(l2_normalise=False):
        # The last layer is linear: with weights 0 and a bias of 1 to 4 that bias comes out.
        assert np.abs(lengths(tower.embed(raw).numpy()) - 1).max() > 1e-3
        kernel, bias = tower.head.projection.weights
        kernel.assign(tf.zeros_like(kernel))
        bias.assign([1.0, -2.0, 3.0, -4.0])
        assert (tower.embed(raw).numpy() == [1, -2, 3, -4]).all()


def test_the_head_by_hand():
    head = DenseHead(hidden=(2,), dim=1, l2_normalise=False)
    head(tf.zeros([1, 2]))
    head.block.layers[0].set_weights([np.float32([[1, -1], [2, 0]]), np.float32([0, 1])])
    head.projection.set_weights([np.float32([[3], [5]]), np.float32([-7])])
    # [1, 1]: hidden [1 + 2, -1 + 1] = [3, 0], so 9 - 7 = 2. [-1, 0]: relu [-1, 2] = [0, 2], so 3.
    # [1, -1]: relu [-1, 0] = [0, 0], so -7: the last layer has no relu.
    found = head(tf.constant([[1.0, 1], [-1, 0], [1, -1]])).numpy()
    assert found.tolist() == [[2], [3], [-7]]


def test_a_shortcut_stands_beside_the_dense_layers():
    sizes = SIZES | {"dim": 4, "l2_normalise": False, "shortcut": True}
    items = item_tower(ITEMS, ItemConfig(("item_id", "year"), id_dim=4, unknown_rate=0.0, **sizes))
    bag = MeanConfig(dim=4, dropout=0.0)
    config = QueryConfig(("history", "gender"), history=bag, **sizes)
    queries = query_tower(QUERIES, config)
    for tower, columns in ((items, RAW_ITEMS), (queries, RAW_QUERIES)):
        raw = {spec.name: columns[spec.name] for spec in tower.inputs}
        encoded = tower.encode(raw)
        # It begins alone; then the layers' bias of [1, 2, 3, 4] comes to it.
        alone = tower.features[0](encoded)
        np.testing.assert_allclose(tower.embed(raw), alone, rtol=1e-6)
        tower.head.projection.bias.assign([1.0, 2.0, 3.0, 4.0])
        expected = alone + tf.constant([1.0, 2.0, 3.0, 4.0])
        np.testing.assert_allclose(tower.embed(raw), expected, rtol=1e-6)
    for wrong in ({"features": ("year",)}, {"id_dim": 3}):
        with pytest.raises(ValueError, match="the shortcut needs item_id, of length dim"):
            item_tower(ITEMS, ItemConfig(**{"id_dim": 4, **sizes, **wrong}))
    for wrong in (
        {"features": ("gender",)},
        {"history": MeanConfig(dim=3)},
        {"history": dataclasses.replace(bag, ratings=True)},
        {"history": AttentionConfig(dim=4)},  # twice as long
    ):
        with pytest.raises(ValueError, match="the shortcut needs a history whose vector"):
            query_tower(QUERIES, dataclasses.replace(config, **wrong))
    both = QueryConfig(("history", "time"), history=GRUConfig(request_time=True))
    with pytest.raises(ValueError, match="both read the input 'time', so take one"):
        query_tower({**QUERIES, "time": np.array([1, 2])}, both)
    with pytest.raises(ValueError, match="the shortcut mood is none of its features"):
        Tower(items.features, items.head, "items", shortcut="mood")


def test_a_head_without_hidden_layers_is_linear():
    head = DenseHead(hidden=(), dim=3, l2_normalise=False, dropout=0.5, batch_norm=True)
    x = tf.constant([[1.0, 2], [3, 4]])
    one, two = head(x, training=True), head(2 * x, training=True)
    np.testing.assert_allclose(two, 2 * one, rtol=1e-5)
    for widths in ({"hidden": (0,)}, {"dim": 0}):
        with pytest.raises(ValueError, match="layer widths must be positive"):
            DenseHead(**widths)


def test_a_tower_without_hidden_layers_can_be_trained():
    tower = item_tower(ITEMS, ItemConfig(hidden=(), dim=4))
    tower.embed({spec.name: RAW_ITEMS[spec.name] for spec in tower.inputs})
    # Tables of ids, words and genres, then the projection's kernel and bias.
    assert len(tower.trainable_weights) == 3 + 2


def test_dropout_is_for_training_only():
    tf.keras.utils.set_random_seed(0)
    # Without hidden ids or events the head's dropout is all that is random.
    tower = item_tower(ITEMS, ItemConfig(dropout=0.5, unknown_rate=0.0, **SIZES))
    raw = {spec.name: RAW_ITEMS[spec.name] for spec in tower.inputs}
    encoded = tower.encode(raw)
    still = [tower(encoded).numpy() for _ in range(2)]
    np.testing.assert_array_equal(*still)
    assert not np.array_equal(*[tower(encoded, training=True).numpy() for _ in range(2)])
    without = item_tower(ITEMS, ItemConfig(dropout=0.0, unknown_rate=0.0, **SIZES))
    np.testing.assert_array_equal(*[without(encoded, training=True).numpy() for _ in range(2)])


def test_batch_norm_by_hand():
    head = DenseHead(hidden=(1,), dim=1, l2_normalise=False, batch_norm=True)
    head(tf.zeros([1, 1]))
    dense, norm = head.block.layers[:2]
    assert len(dense.weights) == 1  # the norm's shift is its bias
    dense.set_weights([np.float32([[1]])])
    head.projection.set_weights([np.float32([[1]]), np.float32([0])])
    x = tf.constant([[1.0], [3.0]])
    # In the batch: mean 2, deviation 1 (and epsilon .001 in the variance): -1 and 1, then relu.
    found = head(x, training=True).numpy()
    np.testing.assert_allclose(found, [[0], [1 / 1.001**0.5]], rtol=1e-5)
    # Afterwards by the moving mean, .99 * 0 + .01 * 2, and variance, .99 * 1 + .01 * 1.
    np.testing.assert_allclose(norm.moving_mean, [0.02], rtol=1e-5)
    found = head(x).numpy()
    np.testing.assert_allclose(found, (x - 0.02) / 1.001**0.5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_towers_with_everything_on(training):
    for tower, raw in towers(batch_norm=True, dropout=0.3):
        vectors = tower(tower.encode(raw), training=training).numpy()
        assert np.isfinite(vectors).all() and vectors.shape[1] == 4
        names = [weight.name for weight in tower.head.trainable_weights]
        assert len(names) == 2 * (1 + 2) + 2  # kernel, scale and shift twice; the projection


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
        ValueError, match=r"t: needs features with distinct inputs; got \['a', 'a'\]"
    ):
        Tower([Id("a", ["x"]), Clock("a")], head, "t")
    # The history's own further input clashes, too.
    with pytest.raises(ValueError, match=r"\['past', 'past_time', 'past_time'\]"):
        Tower([AttentionHistory("past", ["x"], AttentionConfig(2)), Clock("past_time")], head, "t")
    with pytest.raises(ValueError, match=r"distinct inputs; got \[\]"):
        Tower([], head, "t")


@pytest.mark.parametrize(
    "name", ["zip code", "k", "exclude", "state_code", "1st", "home-city", "class", "self"]
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


def test_content_of_past_items():
    """Events bring what their items are: features beside the id, and their weights if shared."""
    config = ItemConfig(("item_id", "genres", "year"), **SIZES)
    items = item_tower(ITEMS, config)
    encoded = items.encode(
        {
            "item_id": tf.constant(list(ITEMS["item_id"])),
            "genres": tf.constant([["drama", "war"], ["drama", ""], ["", ""]]),
            "year": tf.constant(ITEMS["year"], tf.float32),
        }
    )

    def inputs(ids):
        rows = [list(ITEMS["item_id"]).index(item_id) for item_id in ids]
        return {name: tf.gather(values, rows) for name, values in encoded.items()}

    for shared in ("nothing", "item_embedding"):
        wanted = QueryConfig(("history",), history=GRUConfig(content=True), shared=shared, **SIZES)
        tower = query_tower(QUERIES, wanted, items, inputs)
        (history,) = tower.features
        tower.embed(RAW_QUERIES)
        # Rows 0 and 1 are padding and unknown; item m3 is row 4, whichever way it is looked up.
        one, every = history.content(tf.constant([[4, 2]])), history.content.vectors(None, False)
        np.testing.assert_allclose(one[0], tf.gather(every, [2, 0]), atol=1e-6)
        trained = history.content(tf.constant([[4, 2]]), training=True)
        np.testing.assert_allclose(trained, one, atol=1e-6)
        assert (history.content.features[0] is items.features[1]) == (shared != "nothing")
    with pytest.raises(ValueError, match="history_content needs an item tower with more than ids"):
        alone = item_tower(ITEMS, ItemConfig(("item_id",), **SIZES))
        query_tower(QUERIES, wanted, alone, inputs)
