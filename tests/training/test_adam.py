"""The fused update against Keras' own, for dense gradients and for those of a part of the rows."""

import numpy as np
import pytest

from twotower.tf import tf
from twotower.training.adam import FusedAdam, FusedAdamW

OPTIMIZERS = [
    (FusedAdam, tf.keras.optimizers.Adam, {}),
    (FusedAdamW, tf.keras.optimizers.AdamW, {"weight_decay": 0.1}),
]


def trained(optimizer) -> list[np.ndarray]:
    """Weights after some steps, of which each asks for other rows of the table, one of them twice,
    and one for none."""
    table = tf.Variable(tf.reshape(tf.range(12.0), [6, 2]) / 7)
    dense = tf.Variable([[0.5, -0.3], [0.1, 0.9]])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)])
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.gather(table, rows) @ dense - 1.0))
        gradients = tape.gradient(loss, [table, dense])
        assert isinstance(gradients[0], tf.IndexedSlices)
        optimizer.apply_gradients(zip(gradients, [table, dense]))

    for rows in ([0, 3, 3], [1], [], [5, 0], [3]):
        step(tf.constant(rows, tf.int32))
    return [table.numpy(), dense.numpy(), *(slot.numpy() for slot in optimizer.variables)]


@pytest.mark.parametrize(("fused", "keras", "settings"), OPTIMIZERS)
def test_an_update_is_that_of_keras(fused, keras, settings):
    rate = tf.keras.optimizers.schedules.CosineDecay(0.0, 5, warmup_target=0.1, warmup_steps=2)
    found, expected = (trained(of(rate, **settings)) for of in (fused, keras))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("fused", "keras", "settings"), OPTIMIZERS)
def test_a_checkpoint_of_one_continues_with_the_other(fused, keras, settings, tmp_path):
    weights = [tf.Variable([1.0, 2.0]) for _ in range(2)]
    optimizers = [of(0.1, **settings) for of in (keras, fused)]
    gradient = tf.constant([0.3, -0.2])
    optimizers[0].apply_gradients([(gradient, weights[0])])
    saved = tf.train.Checkpoint(weight=weights[0], optimizer=optimizers[0]).save(tmp_path / "c")
    restored = tf.train.Checkpoint(weight=weights[1], optimizer=optimizers[1])
    optimizers[1].build([weights[1]])
    restored.restore(saved).assert_consumed()
    for optimizer, weight in zip(optimizers, weights):
        optimizer.apply_gradients([(gradient, weight)])
    np.testing.assert_allclose(weights[1].numpy(), weights[0].numpy(), rtol=1e-6)


def test_what_the_kernel_does_not_have_is_refused():
    for settings in ({"amsgrad": True}, {"adaptive_epsilon": True}):
        weight = tf.Variable([1.0])
        with pytest.raises(ValueError, match="neither amsgrad nor adaptive_epsilon"):
            FusedAdam(0.1, **settings).apply_gradients([(tf.constant([1.0]), weight)])


def test_keras_saves_it():
    config = tf.keras.optimizers.serialize(FusedAdamW(0.01, weight_decay=0.2))
    again = tf.keras.optimizers.deserialize(config)
    assert type(again) is FusedAdamW and again.weight_decay == 0.2
