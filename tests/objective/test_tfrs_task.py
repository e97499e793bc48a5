"""The plain model of TensorFlow Recommenders, and that `RetrievalTask` gives its loss."""

import numpy as np
import pytest

from twotower.objective.config import NegativesConfig, TaskConfig
from twotower.objective.negatives import Negatives, Targets
from twotower.objective.task import RetrievalTask
from twotower.objective.tfrs_task import PlainTwoTowerModel
from twotower.tf import tf, tfrs

USERS, ITEMS, DIM = 5, 5, 4


def plain_model() -> PlainTwoTowerModel:
    """Towers that look up a vector of their id, with FactorizedTopK over all items."""

    def tower(name: str, size: int) -> tf.keras.Model:
        ids = tf.keras.Input([], dtype=tf.int32, name=name)
        start = tf.keras.initializers.RandomUniform(-1, 1, seed=size)
        vectors = tf.keras.layers.Embedding(size, DIM, embeddings_initializer=start)(ids)
        return tf.keras.Model({name: ids}, vectors)

    users, items = tower("user", USERS), tower("item", ITEMS)
    keys = tf.data.Dataset.from_tensors({"item": np.arange(ITEMS, dtype=np.int32)})
    topk = tfrs.metrics.FactorizedTopK(keys.map(items), ks=[1])
    return PlainTwoTowerModel(users, items, tfrs.tasks.Retrieval(temperature=0.5, metrics=topk))


def test_the_task_of_this_package_gives_its_loss_and_gradients():
    model = plain_model()
    user, item = tf.constant([0, 1, 2, 2]), tf.constant([3, 1, 3, 0])  # item 3 is there twice
    with tf.GradientTape() as tape:
        plain = model.compute_loss(({"user": user}, {"item": item}), training=True)
    expected = tape.gradient(plain, model.trainable_variables)

    config = TaskConfig(temperature=0.5, correction="none", mask_known_positives=False)
    pools = NegativesConfig(("batch",))
    task = RetrievalTask(config, ITEMS, pools)
    none = tf.zeros([4, 0], tf.int32)
    targets = Targets(tf.range(4), item, tf.ones(4), tf.fill([4], 0.25), {}, none)
    with tf.GradientTape() as tape:
        queries = model.query_tower({"user": user})
        columns, positives = Negatives(pools, np.full(ITEMS, 0.2), DIM)(
            targets, lambda keys: model.item_tower({"item": keys}), "none"
        )
        assert columns.keys.shape == [3]  # each distinct item is scored once
        loss = task(queries, positives, targets, columns)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    for ours, theirs in zip(tape.gradient(loss, model.trainable_variables), expected):
        ours, theirs = map(tf.convert_to_tensor, (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_it_trains_and_validates_as_keras_models_do():
    model = plain_model()
    user = np.arange(USERS, dtype=np.int32)
    pairs = {"user": user}, {"item": user[::-1].copy()}
    batches = tf.data.Dataset.from_tensor_slices(pairs).batch(USERS)
    model.compile(optimizer=tf.keras.optimizers.Adam(0.2))
    losses = model.fit(batches, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    found = model.evaluate(batches, return_dict=True, verbose=0)
    assert found["factorized_top_k/top_1_categorical_accuracy"] == pytest.approx(1.0)
