"""Cross layers, factorisation machine and dot products by hand, on two vectors of length 2."""

import itertools

import numpy as np
import pytest

from twotower.ranking.config import RankerConfig
from twotower.ranking.interactions import DCN, DLRM, DeepFM, flat, second_order
from twotower.tf import tf, tfrs

# Two fields, a vector of length 2 each: v_1 = (1, 2), v_2 = (3, 4).
VECTORS = tf.constant([[[1.0, 2.0], [3.0, 4.0]]])
NO_NUMBERS = tf.zeros([1, 0])


def test_columns_one_after_the_other():
    assert flat(VECTORS, tf.constant([[5.0, 6.0]])).numpy().tolist() == [[1, 2, 3, 4, 5, 6]]


def test_a_cross_layer():
    # One field with the vector (1, 2): x_0 = (1, 2). With W x = (x . (1, 1), x . (0, 1)) and
    # b = (1, 0), the first layer gives x_1 = x_0 * (W x_0 + b) + x_0 = (1, 2) * (4, 2) + (1, 2)
    # = (5, 6), the second one x_2 = x_0 * (W x_1 + b) + x_1 = (1, 2) * (12, 6) + (5, 6) = (17, 18).
    layer = DCN(RankerConfig(dim=2, hidden=(), cross_layers=2))
    inputs = (tf.constant([[[1.0, 2.0]]]), NO_NUMBERS)
    layer(inputs)
    for cross in layer.cross:
        # Keras multiplies from the left, so this is W transposed.
        cross.set_weights([np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([1.0, 0.0])])
    features, term = layer(inputs)
    assert features.numpy().tolist() == [[17, 18]]
    assert term.numpy().tolist() == [[0]]


def test_low_rank_cross_layers_are_those_of_multi_layer_dcn():
    layer = DCN(RankerConfig(dim=2, hidden=(), cross_layers=2, cross_rank=1))
    inputs = (VECTORS, NO_NUMBERS)
    layer(inputs)
    other = tfrs.layers.feature_interaction.MultiLayerDCN(projection_dim=1, num_layers=2)
    other(flat(*inputs))
    down, up = other._dense_u_kernels, other._dense_v_kernels
    for cross, first, second in zip(layer.cross, down, up, strict=True):
        # These layers build their Dense layers when they are called.
        first.set_weights(cross._dense_u.get_weights())
        second.set_weights(cross._dense_v.get_weights())
    np.testing.assert_allclose(layer(inputs)[0], other(flat(*inputs)), rtol=1e-6)


def test_second_order():
    # (1, 2) . (3, 4) = 11, the only pair.
    assert second_order(VECTORS).numpy().tolist() == [[11]]
    vectors = np.random.default_rng(0).normal(size=(3, 5, 4))
    pairs = sum(
        (vectors[:, i] * vectors[:, j]).sum(1) for i, j in itertools.combinations(range(5), 2)
    )
    np.testing.assert_allclose(second_order(tf.constant(vectors))[:, 0], pairs)


def test_the_terms_of_deepfm():
    # The last component of each vector is its first-order weight: .5 and .25. A number 2 has the
    # vector (1, 0) and the weight .125; it is known, so its flag is 0.
    #   second order: v_1 . v_2 + 2 (v_1 + v_2) . (1, 0) = 11 + 2 * 4 = 19
    #   first order: .5 + .25 + 2 * .125 = 1
    layer = DeepFM(RankerConfig("deepfm", dim=2, hidden=()))
    vectors = tf.constant([[[1.0, 2.0, 0.5], [3.0, 4.0, 0.25]]])
    numbers = tf.constant([[2.0, 0.0]])
    layer((vectors, numbers))
    layer.of_numbers.assign([[1.0, 0.0, 0.125], [9.0, 9.0, 9.0]])
    features, term = layer((vectors, numbers))
    assert term.numpy().tolist() == [[20]]
    assert features.numpy().tolist() == [[1, 2, 3, 4, 2, 0]]


def test_dot_products_of_dlrm(monkeypatch):
    layer = DLRM(RankerConfig("dlrm", dim=2, hidden=(4,)))
    seen = []
    monkeypatch.setattr(layer.deep, "call", lambda inputs, training: seen.append(inputs) or inputs)
    layer((VECTORS, NO_NUMBERS))
    # The vectors, and below the diagonal of the matrix v_2 . v_1 = 11.
    assert seen[0].numpy().tolist() == [[1, 2, 3, 4, 0, 0, 11, 0]]


def test_numbers_become_a_vector_of_dlrm(monkeypatch):
    layer = DLRM(RankerConfig("dlrm", dim=2, hidden=(4,)))
    monkeypatch.setattr(layer.bottom, "call", lambda inputs, training: tf.constant([[10.0, 0.0]]))
    seen = []
    monkeypatch.setattr(layer.deep, "call", lambda inputs, training: seen.append(inputs) or inputs)
    layer((VECTORS, tf.constant([[5.0, 0.0]])))
    # (10, 0) beside it; (10, 0) . v_1 = 10 and (10, 0) . v_2 = 30 in the last row.
    assert seen[0].numpy().tolist() == [[10, 0, 0, 0, 0, 11, 0, 0, 10, 30, 0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interaction": "fm"}, "unknown interaction 'fm'; one of dcn, deepfm, dlrm, mlp"),
        ({"tasks": "esmm"}, "unknown tasks 'esmm'"),
        ({"dim": 0}, "dim must be 1 or more"),
        ({"hidden": (64, 0)}, "hidden must hold widths"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"interaction": "mlp", "hidden": ()}, "mlp needs hidden layers"),
        ({"tasks": "mmoe"}, "mmoe needs expert_hidden"),
        ({"experts": 2}, "experts=2 has no effect without tasks='mmoe' or 'ple'"),
        ({"position_dropout": 0.1}, "position_dropout=0.1 has no effect without positions"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        RankerConfig(**fields)
