"""The dense layers of a tower: by hand, with a shortcut, dropout and batch normalisation."""

import dataclasses

import numpy as np
import pytest
from three_films import ITEMS, QUERIES, RAW_ITEMS, RAW_QUERIES, SIZES, lengths, towers

from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.history.config import AttentionConfig, GRUConfig, MeanConfig
from twotower.towers.item import ItemConfig, item_tower
from twotower.towers.query import QueryConfig, query_tower


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
