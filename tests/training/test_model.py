"""TwoTowerModel: its fast path against `tfrs.tasks.Retrieval`, masks by hand, timed features."""

import numpy as np
import pytest
import tiny

from twotower.objective.task import TaskConfig
from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower
from twotower.training.model import TwoTowerModel
from twotower.training.trainer import Training


def loss_and_gradients(training: Training, batch: dict, **task):
    """Loss of one batch and its gradients, under another task but with the same weights."""
    model = training.model
    other = TwoTowerModel(
        model.query_tower,
        model.item_tower,
        dict(model._items),
        np.full(model.num_items, 1 / model.num_items),
        TaskConfig(temperature=0.3, **task),
    )
    weights = [*model.query_tower.trainable_weights, *model.item_tower.trainable_weights]
    with tf.GradientTape() as tape:
        loss = other.compute_loss(batch, training=True)
    gradients = tape.gradient(loss, weights)
    return float(loss), [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


@pytest.fixture(scope="module")
def quiet_training() -> Training:
    """Without dropout or hidden ids, so that two passes agree; a few duplicates in each batch."""
    recipe = tiny.recipe(
        query={"unknown_rate": 0.0, "history_dropout": 0.0},
        item={"unknown_rate": 0.0},
        examples={"batch_size": 200, "weight": "value"},
    )
    return Training(tiny.dataset(), tiny.split(), recipe)


@pytest.mark.parametrize(
    ("correction", "mask_own"), [("none", False), ("none", True), ("log_q", False)]
)
def test_unique_path_equals_tfrs_retrieval(quiet_training, correction, mask_own):
    """Same batch, same weights: the loss and every gradient agree to 1e-5."""
    batch = next(iter(quiet_training.batches()))
    items, rows = batch["item"].numpy(), batch["row"].numpy()
    # Without these the two paths would be one: an item twice, a query twice, unequal weights.
    assert len(set(items)) < len(items) and len(set(rows)) < len(rows)
    assert np.ptp(batch["weight"].numpy()) > 0.1
    task = {"correction": correction, "mask_own": mask_own}
    fast, fast_gradients = loss_and_gradients(quiet_training, batch, unique=True, **task)
    plain, plain_gradients = loss_and_gradients(quiet_training, batch, unique=False, **task)
    assert fast == pytest.approx(plain, rel=1e-5)
    assert max(np.abs(gradient).max() for gradient in plain_gradients) > 1e-3
    for one, other in zip(fast_gradients, plain_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_masking_own_positives_changes_the_loss(quiet_training):
    batch = next(iter(quiet_training.batches()))
    masked, _ = loss_and_gradients(quiet_training, batch, correction="none", mask_own=True)
    plain, _ = loss_and_gradients(quiet_training, batch, correction="none", mask_own=False)
    assert masked < plain - 1e-3  # fewer negatives


def one_layer_model(num_items: int = 6, query_dim: int = 4, item_dim: int = 4) -> TwoTowerModel:
    from twotower.towers.features import Number

    towers = [
        Tower([Number("x", [0.0, 1.0])], DenseHead((), dim), name)
        for name, dim in (("query_tower", query_dim), ("item_tower", item_dim))
    ]
    items = {"x": np.linspace(0, 1, num_items, dtype=np.float32)}
    return TwoTowerModel(*towers, items, np.full(num_items, 1 / num_items), TaskConfig())


def test_own_columns_by_hand():
    # A catalogue of 6 items. The batch's columns are the items 4, 0, 4 (twice: a plain batch), 2.
    # Query 0 owns 4 and 5: both columns of 4; 5 is not in the batch.
    # Query 1 owns 0, 2 and, twice, 0: columns 1 and 3.
    # Query 2 owns nothing.
    own = tf.constant([[4, 5, -1, -1], [0, 2, 0, -1], [-1, -1, -1, -1]])
    found = one_layer_model()._own_columns(own, tf.constant([4, 0, 4, 2]))
    expected = [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(found.numpy(), np.array(expected, bool))


def test_own_columns_of_a_batch_where_nobody_owns_anything():
    found = one_layer_model()._own_columns(tf.zeros([2, 0], tf.int32), tf.constant([3, 1]))
    np.testing.assert_array_equal(found.numpy(), np.zeros((2, 2), bool))


@pytest.mark.parametrize("unique", [True, False])
def test_features_of_an_examples_time_count(unique):
    """Age and popularity differ between two examples of one item, so columns cannot be shared."""
    recipe = tiny.recipe(
        item={"features": ("item_id", "age", "popularity")},
        task={"unique": unique, "correction": "none"},
        examples={"batch_size": 64},
    )
    training = Training(tiny.dataset(), tiny.split("loo"), recipe)
    batch = next(iter(training.batches()))
    assert set(batch["timed"]) == {"age", "popularity"}
    model = training.model
    loss = model.compute_loss(batch, training=True)
    assert np.isfinite(loss.numpy())
    # The example's time counts: with all items 1,000 days older the loss is another.
    older = batch | {"timed": batch["timed"] | {"age": batch["timed"]["age"] + 1000.0}}
    tf.keras.utils.set_random_seed(0)
    before = float(model.compute_loss(batch, training=False))
    assert abs(float(model.compute_loss(older, training=False)) - before) > 1e-4


def test_towers_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"query tower's is 4, the item tower's 5"):
        one_layer_model(query_dim=4, item_dim=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("inf")}, "finite"),
        ({"margin": -1.0}, "margin must be 0"),
        ({"calibration": 7.0}, "calibration must lie"),
        ({"correction": "logq"}, "correction must be one of"),
        ({"correction": "log_q", "mask_own": True}, "mask_own=False"),
        ({"correction": "log_q_masked", "unique": False}, "unique=True"),
        ({"correction": "log_q", "mask_own": False, "loss": "triplet"}, "only softmax can have it"),
        ({"loss": "triplet", "temperature_kind": "learned"}, "not bounded below"),
        (
            {"loss": "cosine_contrastive", "temperature": 1.0, "temperature_kind": "learned"},
            "not bounded below",
        ),
        ({"loss": "cosine_contrastive", "temperature": 0.5}, "scores themselves.*temperature=1"),
        # The default temperature would make a margin of .2 one of .02.
        ({"loss": "triplet"}, "scores themselves.*temperature=1"),
        ({"loss": "triplet", "temperature": 1.0, "margin": float("inf")}, "margin must be finite"),
        ({"loss": "cosine_contrastive", "temperature": 1.0, "margin": 1.0}, "no cosine exceeds"),
        # What nothing reads.
        ({"margin": 0.3}, "margin=0.3 has no effect.*triplet or cosine_contrastive"),
        ({"loss": "bce", "triplet_mining": "hardest"}, "triplet_mining='hardest' has no effect"),
        ({"negative_ratio": 64.0}, "negative_ratio=64.0 has no effect"),
        ({"loss": "bce", "calibration": 1.0}, "calibration=1.0 has no effect.*gbce"),
        ({"temperature_last": 0.2}, "temperature_last=0.2 has no effect.*annealed"),
        (
            {"temperature_kind": "learned", "temperature_steps": 9},
            "temperature_steps=9 has no effect.*annealed",
        ),
        (
            {"frequency": "streaming", "correction": "none"},
            "frequency='streaming' has no effect.*correction",
        ),
        (
            {"loss": "triplet", "temperature": 1.0, "triplet_mining": "semi_hard"},
            "takes one negative.*correction='none'",
        ),
    ],
)
def test_tasks_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TaskConfig(**fields)
