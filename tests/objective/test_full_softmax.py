"""The full softmax in blocks of rows is that of the whole matrix."""

import numpy as np
import pytest

from twotower.objective import full_softmax
from twotower.objective.full_softmax import FullSoftmax, log_normaliser
from twotower.objective.negatives import Columns, NegativesConfig, Targets
from twotower.objective.task import RetrievalTask, TaskConfig
from twotower.tf import tf


@pytest.mark.parametrize("share_own", [0.0, 0.3])
@pytest.mark.parametrize("block_scores", [1, 64 * 7, 2**20])
def test_log_normaliser_is_that_of_the_whole_matrix(monkeypatch, block_scores, share_own):
    # Rows in blocks of 16, 64 and all 100, the last one cut short.
    monkeypatch.setattr(full_softmax, "BLOCK_SCORES", block_scores)
    rng = np.random.default_rng(0)
    queries, items, weight = (
        tf.constant(values, tf.float32)
        for values in (3 * rng.normal(size=(100, 5)), 3 * rng.normal(size=(7, 5)), rng.random(100))
    )
    left_out = tf.constant(rng.random((100, 7)) < share_own)
    given = {"known": left_out} if share_own else {}

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch([queries, items, weight])
            value = 2 * function(queries, items, weight, **given)
        return [value, *tape.gradient(value, [queries, items, weight])]

    def whole(queries, items, weight, **_):
        scores = tf.matmul(queries, items, transpose_b=True) + tf.where(left_out, -np.inf, 0.0)
        return tf.reduce_sum(tf.reduce_logsumexp(scores, 1) * weight)

    for found, expected in zip(gradients(log_normaliser), gradients(whole)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_log_normaliser_of_large_scores_and_of_no_query():
    items = tf.constant([[1.0], [-1.0]])
    found = log_normaliser(tf.constant([[1000.0]]), items, tf.ones([1]))
    np.testing.assert_allclose(found, 1000.0)
    assert float(log_normaliser(tf.zeros([0, 1]), items, tf.zeros([0]))) == 0.0


@pytest.mark.parametrize(
    "query_index, has_own", [(None, False), (None, True), ([2, 0, 0, 1, 2], False)]
)
def test_full_softmax_without_its_matrix_is_the_same(query_index, has_own):
    rng = np.random.default_rng(0)
    config = TaskConfig(temperature=0.5, correction="none", mask_known_positives=False)
    queries = tf.constant(rng.normal(size=(5 if query_index is None else 3, 2)), tf.float32)
    items = tf.constant(rng.normal(size=(4, 2)), tf.float32)
    item, weight = tf.constant([3, 1, 1, 0, 2]), tf.constant([1.0, 2.0, 0.0, 0.5, 1.0])
    row = None if query_index is None else tf.constant(query_index)
    none = tf.zeros([len(queries), 0], tf.int32)
    # The second row's and the last one's items came before, too.
    own = tf.constant([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0]]) > 0

    def gradients(kind):
        with tf.GradientTape() as tape:
            tape.watch([queries, items])
            loss = kind(config, 4, NegativesConfig(("catalogue",)))(
                queries,
                tf.gather(items, item),
                Targets(row, item, weight, tf.ones(5), {}, none),
                Columns(tf.range(4), tf.zeros([4]), items),
                known=own if has_own else None,
            )
        return [loss, *map(tf.convert_to_tensor, tape.gradient(loss, [queries, items]))]

    for found, expected in zip(gradients(FullSoftmax), gradients(RetrievalTask)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
