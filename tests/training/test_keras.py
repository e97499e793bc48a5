"""Keras' habits: call, fit, evaluate, predict, callbacks, and a round trip through a config."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tiny

from twotower.tf import tf
from twotower.towers.dense import Tower
from twotower.trainer import Trainer
from twotower.training.model import TwoTowerModel
from twotower.training.training import Training


@pytest.fixture(scope="module")
def training() -> Training:
    recipe = tiny.recipe(item={"features": ("item_id", "title", "genres", "year")})
    return Training(tiny.dataset(), tiny.split(), recipe)


def test_a_model_of_keras(training, tmp_path):
    model, batches = training.model, training.batches()
    model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
    stop = tf.keras.callbacks.EarlyStopping("val_loss", patience=5)
    checkpoint = tf.keras.callbacks.ModelCheckpoint(tmp_path / "weights", save_weights_only=True)
    cases = training.topk_batches()
    history = model.fit(
        batches, epochs=2, validation_data=cases, callbacks=[stop, checkpoint], verbose=0
    ).history
    assert history["loss"][1] < history["loss"][0] - 0.1
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(cases, verbose=0)[0], rel=1e-4)
    queries, items = model.predict(cases, verbose=0)
    num = sum(len(batch.targets().item) for batch in cases)
    assert queries.shape == items.shape == (num, 8)
    first = next(iter(cases))
    for found, expected in zip(model(first), (queries, items)):
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-5)


def test_what_would_be_ignored_is_refused(training):
    for given in ({"loss": "mse"}, {"metrics": ["accuracy"]}):
        with pytest.raises(
            ValueError, match="would have no effect: the loss is that of TaskConfig"
        ):
            training.model.compile(optimizer="adam", **given)
    with pytest.raises(ValueError, match="would have no effect"):
        training.model.compile("adam", "mse")


def test_a_split_of_other_data_is_refused():
    """Its rows would be other interactions, and the training would not tell."""
    dataset, few = tiny.dataset(), np.arange(3000)
    fewer_rows = dataclasses.replace(dataset, interactions=dataset.interactions.iloc[few])
    more_items = pd.concat([dataset.items, dataset.items.iloc[:1].assign(item_id="new")])
    for other in (fewer_rows, dataclasses.replace(dataset, items=more_items)):
        with pytest.raises(ValueError, match=r"split of other data\. Take make_split of this"):
            Training(other, tiny.split(), tiny.recipe())
    with pytest.raises(TypeError, match="recipe must be a Recipe, such as Recipe"):
        Trainer(dataset, tiny.split(), {"epochs": 1})


def test_a_model_comes_back_from_its_file(training, tmp_path):
    model, batch = training.model, next(iter(training.topk_batches()))
    model.save(tmp_path / "model.keras")
    again = tf.keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert isinstance(again, TwoTowerModel) and again.get_config() == model.get_config()
    for found, expected in zip(again(batch), model(batch)):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    loss = float(model.compute_loss(batch))
    assert float(again.compute_loss(batch)) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "history", ["mean", "recency", "attention", "gru", "transformer", "masked_transformer", "hstu"]
)
def test_a_tower_comes_back_from_its_config(history):
    query = {"features": ("user_id", "history", "gender"), "history": history}
    query |= {} if history == "mean" else {"history_length": 9, "history_stride": 3}
    recipe = tiny.recipe(query=query)
    tower = Training(tiny.dataset(), tiny.split("loo"), recipe).model.query_tower
    again = Tower.from_config(tower.get_config())
    again.build_weights()
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in tower.weights]
    again.set_weights(tower.get_weights())
    raw = {}
    for spec in tower.inputs:
        shape = [2, *(3 for _ in spec.shape)]
        raw[spec.name] = (
            tf.fill(shape, "i00001") if spec.dtype == "string" else tf.zeros(shape, spec.dtype)
        )
    np.testing.assert_allclose(again.embed(raw), tower.embed(raw), atol=1e-6)


def test_towers_that_share_layers_say_so():
    recipe = tiny.recipe(query={"shared": "item_embedding"})
    training = Training(tiny.dataset(), tiny.split(), recipe)
    with pytest.raises(NotImplementedError, match="shares layers with the item tower"):
        training.model.get_config()
