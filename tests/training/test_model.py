"""TwoTowerModel: its fast path against `tfrs.tasks.Retrieval`, masks by hand, timed features."""

import numpy as np
import pytest
import tiny

from twotower.objective.corrections import earlier_columns, known_columns
from twotower.objective.task import TaskConfig
from twotower.tf import tf, tfrs
from twotower.towers.dense import DenseHead, Tower
from twotower.training.model import TwoTowerModel
from twotower.training.training import Training


def loss_and_gradients(training: Training, batch, **task):
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


def plain_loss_and_gradients(training: Training, batch, correction: str, mask: bool):
    """The same by `tfrs.tasks.Retrieval` as it is: every example a row and a column."""
    model, targets = training.model, batch.targets()
    weights = [*model.query_tower.trainable_weights, *model.item_tower.trainable_weights]
    score_mask = None
    if mask:
        known = known_columns(batch.known_positives, targets.item, model.num_items)
        score_mask = ~tf.gather(known, targets.row) | tf.eye(len(targets.item), dtype=tf.bool)
    with tf.GradientTape() as tape:
        queries, items = model(batch, training=True)
        loss = tfrs.tasks.Retrieval(temperature=0.3)(
            queries,
            items,
            sample_weight=targets.weight,
            candidate_sampling_probability=targets.probability if correction == "log_q" else None,
            score_mask=score_mask,
        )
        loss /= len(targets.item)
    gradients = tape.gradient(loss, weights)
    return float(loss), [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


@pytest.mark.parametrize(
    ("correction", "mask_known_positives"), [("none", False), ("none", True), ("log_q", False)]
)
def test_equals_tfrs_retrieval(quiet_training, correction, mask_known_positives):
    """Same batch, same weights: the loss and every gradient agree to 1e-5."""
    batch = next(iter(quiet_training.batches()))
    targets = batch.targets()
    items, rows = targets.item.numpy(), targets.row.numpy()
    # Without these the two ways would be one: an item twice, a query twice, unequal weights.
    assert len(set(items)) < len(items) and len(set(rows)) < len(rows)
    assert np.ptp(targets.weight.numpy()) > 0.1
    task = {"correction": correction, "mask_known_positives": mask_known_positives}
    fast, fast_gradients = loss_and_gradients(quiet_training, batch, **task)
    plain, gradients = plain_loss_and_gradients(
        quiet_training, batch, correction, mask_known_positives
    )
    assert fast == pytest.approx(plain, rel=1e-5)
    assert max(np.abs(gradient).max() for gradient in gradients) > 1e-3
    for one, other in zip(fast_gradients, gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_masking_own_positives_changes_the_loss(quiet_training):
    batch = next(iter(quiet_training.batches()))
    masked, _ = loss_and_gradients(
        quiet_training, batch, correction="none", mask_known_positives=True
    )
    plain, _ = loss_and_gradients(
        quiet_training, batch, correction="none", mask_known_positives=False
    )
    assert masked < plain - 1e-3  # fewer negatives


def one_layer_model(num_items: int = 6, query_dim: int = 4, item_dim: int = 4) -> TwoTowerModel:
    from twotower.towers.numbers import Number

    towers = [
        Tower([Number("x", [0.0, 1.0])], DenseHead((), dim), name)
        for name, dim in (("query_tower", query_dim), ("item_tower", item_dim))
    ]
    items = {"x": np.linspace(0, 1, num_items, dtype=np.float32)}
    return TwoTowerModel(*towers, items, np.full(num_items, 1 / num_items), TaskConfig())


def test_known_columns_by_hand():
    # A catalogue of 6 items. The columns are the items 4, 0, 4 (twice), 2, and an empty one.
    # Query 0 knows 4 and 5: both columns of 4; 5 is not a column.
    # Query 1 knows 0, 2 and, twice, 0: columns 1 and 3.
    # Query 2 knows nothing.
    known = tf.ragged.constant([[4, 5], [0, 2, 0], []], dtype=tf.int32)
    found = known_columns(known, tf.constant([4, 0, 4, 2, -1]), 6)
    expected = [[1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(found.numpy(), np.array(expected, bool))
    distinct = known_columns(known, tf.constant([4, 0, 2]), 6, are_distinct=True)
    np.testing.assert_array_equal(distinct.numpy(), np.array(expected, bool)[:, [0, 1, 3]])


def test_earlier_columns_by_hand():
    # A sequence 3, 1, 3, 0 and one of 2 alone. Columns are the items 0 to 3.
    events = tf.ragged.constant([[3, 1, 3, 0], [2]], dtype=tf.int32)
    row, num_earlier = tf.constant([0, 0, 0, 1]), tf.constant([0, 1, 3, 1])
    found = earlier_columns(events, row, num_earlier, tf.range(4), 4)
    # Before the first event nothing; before the second 3; before the fourth 3 and 1.
    expected = [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 0]]
    np.testing.assert_array_equal(found.numpy(), np.array(expected, bool))


def test_features_of_an_examples_time_count():
    """Age and popularity differ between two examples of one item, so columns cannot be shared."""
    recipe = tiny.recipe(
        item={"features": ("item_id", "age", "popularity")},
        task={"correction": "none"},
        examples={"batch_size": 64},
    )
    training = Training(tiny.dataset(), tiny.split("loo"), recipe)
    batch = next(iter(training.batches()))
    assert set(batch.item_inputs) == {"age", "popularity"}
    model = training.model
    loss = model.compute_loss(batch, training=True)
    assert np.isfinite(loss.numpy())
    # An item that is there several times has several columns, and each is masked.
    targets = batch.targets()
    columns, _ = model.negatives(targets, model.item_vectors, "none")
    assert len(np.unique(columns.keys)) < len(columns.keys)
    known = [np.isin(columns.keys, row) for row in batch.known_positives.to_list()]
    np.testing.assert_array_equal(model._known(batch, targets, columns).numpy(), known)
    # The example's time counts: with all items 1,000 days older the loss is another.
    older = {**batch.item_inputs, "age": batch.item_inputs["age"] + 1000.0}
    before = float(model.compute_loss(batch, training=False))
    after = float(model.compute_loss(batch._replace(item_inputs=older), training=False))
    assert abs(after - before) > 1e-4


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
        ({"correction": "log_q", "mask_known_positives": True}, "mask_known_positives=False"),
        (
            {"correction": "log_q", "mask_known_positives": False, "loss": "triplet"},
            "which only softmax allows",
        ),
        ({"loss": "triplet", "learned_temperature": True}, "not bounded below"),
        (
            {"loss": "cosine_contrastive", "temperature": 1.0, "learned_temperature": True},
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
