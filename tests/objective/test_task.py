"""The retrieval task on a whole batch against tfrs.tasks.Retrieval, and its learned temperature."""

import numpy as np
import pytest
from batch_losses import in_batch

from twotower.objective.negatives import Columns, NegativesConfig, Targets
from twotower.objective.task import RetrievalTask, TaskConfig
from twotower.tf import tf, tfrs


def test_a_learned_temperature():
    """It starts where it is asked to, stays in its bounds, and comes back from them."""
    task = RetrievalTask(TaskConfig(learned_temperature=True), 5, NegativesConfig())
    with tf.GradientTape() as tape:
        temperature = task.temperature
    assert float(temperature) == pytest.approx(0.1)
    assert float(tape.gradient(temperature, task.log_temperature)) == pytest.approx(0.1)
    optimizer = tf.keras.optimizers.SGD(1.0)
    for gradient, bound in ((9.0, 0.01), (-9.0, 1.0)):
        for step, expected in ((gradient, bound), (-gradient / 90, bound * np.exp(gradient / 90))):
            optimizer.apply_gradients([(tf.constant(step), task.log_temperature)])
            assert float(task.temperature) == pytest.approx(expected, rel=1e-5)
    for start in (0.005, 2.0):
        with pytest.raises(ValueError, match="starts within"):
            TaskConfig(learned_temperature=True, temperature=start)


@pytest.mark.parametrize(
    ("correction", "mask_known_positives"), [("none", False), ("none", True), ("log_q", False)]
)
def test_equals_tfrs_retrieval_on_the_expanded_batch(correction, mask_known_positives):
    """Distinct rows and columns scored once give the loss and gradient of tfrs' full matrix."""
    rng = np.random.default_rng(0)
    num_queries, num_items, num_examples, dim = 5, 7, 24, 4
    row = rng.integers(num_queries, size=num_examples)
    item = rng.integers(num_items, size=num_examples)
    queries = tf.Variable(rng.normal(size=(num_queries, dim)).astype("f4"))
    items = tf.Variable(rng.normal(size=(num_items, dim)).astype("f4"))
    p = rng.dirichlet(np.ones(num_items)).astype("f4")
    weight = rng.random(num_examples).astype("f4")
    likes = np.zeros((num_queries, num_items), bool)
    likes[row, item] = True
    config = TaskConfig(
        temperature=0.3, correction=correction, mask_known_positives=mask_known_positives
    )

    own = tf.constant(likes) if mask_known_positives else None
    with tf.GradientTape() as tape:
        loss = in_batch(config, queries, items, row, item, p, own, weight)
    gradients = tape.gradient(loss, [queries, items])

    task = tfrs.tasks.Retrieval(
        loss=tf.keras.losses.CategoricalCrossentropy(
            from_logits=True, reduction=tf.keras.losses.Reduction.SUM_OVER_BATCH_SIZE
        ),
        temperature=0.3,
    )
    with tf.GradientTape() as tape:
        expected = task(
            tf.gather(queries, row),
            tf.gather(items, item),
            sample_weight=weight,
            candidate_sampling_probability=tf.gather(p, item) if correction == "log_q" else None,
            score_mask=~likes[row][:, item] | np.eye(num_examples, dtype=bool)
            if mask_known_positives
            else None,
        )
    expected_gradients = tape.gradient(expected, [queries, items])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for got, want in zip(gradients, expected_gradients):
        np.testing.assert_allclose(tf.convert_to_tensor(got), tf.convert_to_tensor(want), atol=1e-5)


@pytest.mark.parametrize(
    ("item", "is_same"), [([0, 1, 2, 3, 4, 5], True), ([0, 0, 0, 1, 1, 2], False)]
)
def test_the_hardest_are_distinct_items(item, is_same):
    """As `num_hard_negatives` of tfrs where no item comes twice; there each copy is a column."""
    rng = np.random.default_rng(0)
    queries, items = (tf.constant(rng.normal(size=(6, 4)), tf.float32) for _ in range(2))
    config = TaskConfig(temperature=0.5, correction="none", mask_known_positives=False)
    negatives = NegativesConfig(num_hardest=2)
    plain = tfrs.tasks.Retrieval(temperature=0.5, num_hard_negatives=2)
    expected = plain(queries, tf.gather(items, item), compute_metrics=False)
    keys, _, count = tf.unique_with_counts(tf.constant(item))
    none = tf.zeros([6, 0], tf.int32)
    loss = RetrievalTask(config, 6, negatives)(
        queries,
        tf.gather(items, item),
        Targets(tf.range(6), tf.constant(item), tf.ones(6), tf.fill([6], 1 / 6), {}, none),
        Columns(keys, tf.math.log(tf.cast(count, tf.float32)), tf.gather(items, keys)),
    )
    assert (float(loss) == pytest.approx(float(expected), rel=1e-5)) == is_same
