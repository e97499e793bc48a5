"""The loss, worked by hand on a 2x2 matrix, against tfrs.tasks.Retrieval, and in the limit."""

import itertools

import numpy as np
import pytest

import twotower  # noqa: F401

import tensorflow as tf  # isort: skip
import tensorflow_recommenders as tfrs  # isort: skip
from twotower.losses import CORRECTIONS, column_log_weight, in_batch_softmax
from twotower.model import InBatchRetrieval, TaskConfig

LOG = np.log


def loss_of(scores, row, column, count, probability, correction, own=None):
    return in_batch_softmax(
        tf.constant(scores, tf.float32),
        tf.constant(row),
        tf.constant(column),
        tf.constant(count),
        tf.constant(probability, tf.float32),
        correction,
        own if own is None else tf.constant(own),
    ).numpy()


def test_two_by_two_by_hand():
    # Two queries, two items; query 0 likes item 0, query 1 likes item 1. Scores are logarithms, so
    # that exp(scores) = [[2, 1], [3, 6]].
    scores = LOG([[2, 1], [3, 6]])
    # Plain softmax: -log 2/(2+1) and -log 6/(3+6).
    np.testing.assert_allclose(
        loss_of(scores, [0, 1], [0, 1], [1, 1], [0.5, 0.25], "none"),
        [LOG(3 / 2), LOG(9 / 6)],
        rtol=1e-6,
    )
    # log_q divides column 0 by 1/2 and column 1 by 1/4, the positive's own too: rows become
    # [4, 4] and [6, 24].
    np.testing.assert_allclose(
        loss_of(scores, [0, 1], [0, 1], [1, 1], [0.5, 0.25], "log_q"),
        [LOG(8 / 4), LOG(30 / 24)],
        rtol=1e-6,
    )
    # log_q_masked, B = 2: a negative is divided by (2-1) p, the positive stays as it is:
    # row 0: 2 against 1/(1/4) = 4; row 1: 6 against 3/(1/2) = 6.
    np.testing.assert_allclose(
        loss_of(scores, [0, 1], [0, 1], [1, 1], [0.5, 0.25], "log_q_masked"),
        [LOG(6 / 2), LOG(12 / 6)],
        rtol=1e-6,
    )


def test_duplicates_and_own_positives_by_hand():
    # Three examples, B = 3: query 0 with item 0 twice (another user's example of it, too) and
    # query 1 with item 1. exp(scores) as above; item 0 stands in the batch twice.
    scores, row, column, count = LOG([[2, 1], [3, 6]]), [0, 0, 1], [0, 0, 1], [2, 1]
    # none: the duplicate is a negative, as in tfrs: row 0: 2 / (2+2+1); row 1: 6 / (3+3+6).
    np.testing.assert_allclose(
        loss_of(scores, row, column, count, [0.5, 0.25], "none"),
        [LOG(5 / 2), LOG(5 / 2), LOG(12 / 6)],
        rtol=1e-6,
    )
    # log_q_masked: row 0: negatives are item 1 once, 1 / (2 * 1/4) = 2, against 2; row 1: item 0
    # twice, 2 * 3 / (2 * 1/2) = 6, against 6.
    np.testing.assert_allclose(
        loss_of(scores, row, column, count, [0.5, 0.25], "log_q_masked"),
        [LOG(4 / 2), LOG(4 / 2), LOG(12 / 6)],
        rtol=1e-6,
    )
    # The same with own positives masked: query 0 also likes item 1, so it has no negative left
    # and no loss; query 1 likes item 1 alone, so nothing changes.
    own = [[True, True], [False, True]]
    np.testing.assert_allclose(
        loss_of(scores, row, column, count, [0.5, 0.25], "log_q_masked", own),
        [0, 0, LOG(12 / 6)],
        atol=1e-6,
    )


def test_unknown_correction_names_the_choices():
    with pytest.raises(ValueError, match="log_q_masked"):
        column_log_weight(tf.constant([1]), tf.constant([0.5]), tf.constant(1), "logq")


@pytest.mark.parametrize(
    ("correction", "mask_own"), [("none", False), ("none", True), ("log_q", False)]
)
def test_equals_tfrs_retrieval_on_the_expanded_batch(correction, mask_own):
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
    config = TaskConfig(temperature=0.3, correction=correction, mask_own=mask_own)

    with tf.GradientTape() as tape:
        columns, column, count = tf.unique_with_counts(tf.constant(item))
        loss = InBatchRetrieval(config)(
            queries,
            tf.gather(items, columns),
            row=tf.constant(row),
            column=column,
            count=count,
            probability=tf.gather(p, columns),
            sample_weight=weight,
            own=tf.constant(likes[:, columns.numpy()]) if mask_own else None,
        )
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
            if mask_own
            else None,
        )
    expected_gradients = tape.gradient(expected, [queries, items])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for got, want in zip(gradients, expected_gradients):
        np.testing.assert_allclose(tf.convert_to_tensor(got), tf.convert_to_tensor(want), atol=1e-5)


def expected_gradient(scores, p, batch_size, correction):
    """d loss / d scores of one query whose positive is item 0, over all batches, by enumeration."""
    num_items = len(p)
    total = np.zeros(num_items)
    for others in itertools.product(range(num_items), repeat=batch_size - 1):
        item = np.array([0, *others])
        columns, column, count = np.unique(item, return_inverse=True, return_counts=True)
        s = tf.constant(scores[None, columns], tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(s)
            # Row 0 is the query; the other examples belong to it as well, only the first counts.
            loss = in_batch_softmax(
                s,
                tf.zeros(len(item), tf.int32),
                tf.constant(column),
                tf.constant(count),
                tf.constant(p[columns], tf.float32),
                correction,
            )[0]
        total[columns] += tape.gradient(loss, s).numpy()[0] * np.prod(p[list(others)])
    return total


def test_corrections_tend_to_the_full_softmax_gradient():
    """The error falls with the batch for both corrections, and stays for plain in-batch softmax."""
    scores, p = LOG([1.0, 4.0, 2.0]), np.array([0.2, 0.7, 0.1])
    full = np.exp(scores) / np.exp(scores).sum() - [1, 0, 0]
    error = {
        (correction, batch): np.abs(expected_gradient(scores, p, batch, correction) - full).sum()
        / np.abs(full).sum()
        for correction in CORRECTIONS
        for batch in (2, 6)
    }
    for correction in ("log_q", "log_q_masked"):
        assert error[correction, 6] < 0.5 * error[correction, 2]
        assert error[correction, 6] < error["none", 6]


def test_loss_stays_finite_where_everything_is_masked_and_for_large_scores():
    own = [[True, True]]
    assert loss_of([[90.0, -90.0]], [0], [0], [3, 1], [0.5, 0.5], "log_q_masked", own) == [0.0]
    # Rare item, in the batch once, w = 1 / ((2-1) * 1e-4) = 1e4; its own column must drop out:
    # log(exp(20) + exp(0) / .9999) - 20 = 2.06e-9, up to the rounding of 1e4 * 6e-8.
    loss = loss_of([[20.0, 0.0]], [0, 0], [0, 1], [1, 1], [1e-4, 0.9999], "log_q_masked")
    assert 0 <= loss[0] < 6e-4


def test_task_config_refuses_combinations_that_lie():
    with pytest.raises(ValueError, match="mask_own=False"):
        TaskConfig(correction="log_q", mask_own=True)
    with pytest.raises(ValueError, match="unique=True"):
        TaskConfig(correction="log_q_masked", unique=False)
    with pytest.raises(ValueError, match="temperature"):
        TaskConfig(temperature=0.0)
