"""Each encoder of events by hand, and each of their parts."""

import numpy as np
import pytest
from small_histories import NAN, SHORT, answers, made, raw

from twotower.tf import tf
from twotower.towers.history.config import (
    AttentionConfig,
    GRUConfig,
    RecencyConfig,
    TransformerConfig,
)
from twotower.towers.history.hstu import GatedBlock
from twotower.towers.history.sequence import num_dropped, put
from twotower.towers.history.transformer import UNSEEN, AttentionBlock, looked_up


def test_biases_by_hand():
    """Head 0 of distance d is d, of a bucket b 100 b; head 1 is nought."""
    feature = made(TransformerConfig(**SHORT, positions="relative", time_bias=True))
    for weight, scale in ((feature.distance_bias, 1.0), (feature.time_bias_table, 100.0)):
        weight.assign(np.stack([scale * np.arange(weight.shape[0]), np.zeros(weight.shape[0])], 1))
    window = feature.window(feature.encode(raw([[3, 1]], times=[[10, 14]])))
    found = feature.bias(window, tf.range(3)[None]).numpy()
    assert found.shape == (1, 2, 3, 3) and (found[:, 1] == 0).all()
    # Tokens are begin, at the time of the first event, and the events at 10 and 14 s: 4 s after
    # the first two lies bucket 1 + log2 4 = 3.
    assert found[0, 0, 2].tolist() == [2 + 300, 1 + 300, 0]
    assert found[0, 0, 1, :2].tolist() == [1, 0]


@pytest.mark.parametrize("batch_size", [1, 3])  # biases of distance are those of all
def test_the_gradient_of_a_bias_is_that_of_a_lookup(batch_size):
    rng = np.random.default_rng(0)
    table = tf.Variable(rng.normal(size=(5, 2)).astype(np.float32))
    index = tf.constant(rng.integers(0, 4, (batch_size, 6, 7)), tf.int32)  # never the last row
    weight = tf.constant(rng.normal(size=(3, 2, 6, 7)).astype(np.float32))
    with tf.GradientTape(persistent=True) as tape:
        ours = tf.reduce_sum(weight * looked_up(table, index))
        plain = tf.reduce_sum(weight * tf.transpose(tf.gather(table, index), [0, 3, 1, 2]))
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    expected = tf.convert_to_tensor(tape.gradient(plain, table))
    np.testing.assert_allclose(tape.gradient(ours, table), expected, rtol=1e-5, atol=1e-6)


def test_an_event_by_hand():
    """Its item's vector, the vector of the gap's bucket and that of the rating in half stars."""
    feature = made(GRUConfig(**SHORT, gaps=True, ratings=True))
    window = feature.window(feature.encode(raw([[3, 1]], times=[[10, 14]])))
    window = window._replace(ratings=tf.constant([[NAN, 3.5]]))
    found = feature.event_vectors(window).numpy()[0] / 8**0.5
    item, gap, rating = (
        table.embeddings.numpy()
        for table in (feature.table, feature.gap_table, feature.rating_table)
    )
    rows = feature.rows(window.items).numpy()[0]
    np.testing.assert_allclose(found[0], item[rows[0]] + gap[0] + rating[0], atol=1e-6)
    np.testing.assert_allclose(found[1], item[rows[1]] + gap[3] + rating[7], atol=1e-6)


def test_what_has_no_place_is_not_put():
    found = put(tf.zeros([2, 3]), tf.constant([[0, 2], [1, -1], [1, 3]]), tf.constant([5.0, 6, 7]))
    np.testing.assert_array_equal(found, [[0, 0, 5], [0, 0, 0]])


def test_the_window_by_hand():
    # Up to 6 events all are read; of 7 and of 8 the oldest 2 are not, of 9 and 10 the oldest 4.
    found = num_dropped(tf.range(5, 12), 6, 2).numpy().tolist()
    assert found == [0, 0, 2, 2, 4, 4, 6]
    assert num_dropped(tf.range(5, 9), 6, 1).numpy().tolist() == [0, 0, 1, 2]


def table_of(feature, rows):
    """Sets the vectors of items 0, 1, ... and that of `begin` to zero; undoes the scale."""
    feature.table.build(None) if not feature.table.built else None
    table = np.zeros(feature.table.embeddings.shape, np.float32)
    table[2 : 2 + len(rows)] = np.asarray(rows) / feature.dim**0.5
    feature.table.embeddings.assign(table)
    feature.begin_vector.assign(np.zeros(feature.dim))


def test_recency_by_hand():
    feature = made(RecencyConfig(dim=2, half_life=1, dropout=0))
    table_of(feature, [[4, 0], [0, 8]])
    # A half-life of one event: g = 1/2. Of nothing, item 0 and item 1 the weights are 1/4, 1/2 and
    # 1, in all 7/4: (1/2 [4, 0] + [0, 8]) / (7/4).
    np.testing.assert_allclose(answers(feature, [[0, 1]]), [[8 / 7, 32 / 7]], rtol=1e-6)


def test_attention_pooling_by_hand():
    feature = made(AttentionConfig(dim=2, dropout=0))
    answers(feature, [[0, 1]])
    table_of(feature, [[4, 0], [0, 8]])
    # v = 0 leaves the bias of age: 7 s are bucket 3. Events at 1 s and 8 s, the beginning at the
    # first event: biases log 3, log 3 and 0, so weights 3/7, 3/7 and 1/7.
    feature.score.kernel.assign(tf.zeros_like(feature.score.kernel))
    bias = np.zeros(feature.age_bias.embeddings.shape, np.float32)
    bias[3] = np.log(3)
    feature.age_bias.embeddings.assign(bias)
    expected = [[12 / 7, 8 / 7, 4 / 3, 8 / 3]]  # and the mean of three
    np.testing.assert_allclose(answers(feature, [[0, 1]]), expected, rtol=1e-5)


def test_a_gru_step_by_hand():
    feature = made(GRUConfig(dim=1, layers=1, dropout=0))
    answers(feature, [[0]])
    table_of(feature, [[2.0]])
    cell = feature.layers[0].cell
    # Keras' gates are z, r, c; all weights one, no bias.
    for weight in (cell.kernel, cell.recurrent_kernel):
        weight.assign(tf.ones_like(weight))
    cell.bias.assign(tf.zeros_like(cell.bias))
    # The beginning is a zero and leaves h = 0: z = 1/2, c = tanh 0. Then x = 2, h = 0:
    # z = sigmoid 2, c = tanh 2, h = (1 - z) c.
    z = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(answers(feature, [[0]]), [[(1 - z) * np.tanh(2.0)]], rtol=1e-5)


def test_an_attention_block_by_hand():
    block = AttentionBlock(2, heads=1, dropout=0)
    x = tf.constant([[1.0, -1.0], [-1.0, 1.0]])  # norm leaves these as they are
    block.project(x, 2)
    block.projection.kernel.assign(tf.concat([tf.eye(2)] * 3, 1))
    queries, keys, values = block.project(x, 2)  # of a batch of one with one head
    np.testing.assert_allclose(queries[0, 0], x, atol=1e-5)
    bias = tf.constant([[0.0, UNSEEN], [0.0, 0.0]])
    block.mix(x, queries, keys, values, bias)
    block.out.kernel.assign(tf.eye(2))
    block.hidden_out.kernel.assign(tf.zeros_like(block.hidden_out.kernel))
    # Token 1 attends to itself: 1 + 1. Token 2: logits -2 and 2 over sqrt 2 for [1, -1] and itself,
    # of which [-1, 1] gets a = sigmoid(4 / sqrt 2): 2 a - 1 more.
    more = 2 / (1 + np.exp(-4 / 2**0.5)) - 1
    expected = [[2, -2], [-1 - more, 1 + more]]
    found = block.mix(x, queries, keys, values, bias)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # A bias of -8 / sqrt 2 on the own position turns it around.
    bias = tf.constant([[0.0, UNSEEN], [0.0, -8 / 2**0.5]])
    found = block.mix(x, queries, keys, values, bias)
    np.testing.assert_allclose(found[1], [-1 + more, 1 - more], rtol=1e-4)


def test_a_gated_block_by_hand():
    block = GatedBlock(2, heads=1, dropout=0, num_tokens=4)
    x = tf.constant([[1.0, -1.0], [-1.0, 1.0]])
    block.project(x, 2)
    block.projection.kernel.assign(tf.concat([tf.eye(2)] * 4, 1))
    queries, keys, values = block.project(x, 2)  # of a batch of one with one head

    def silu(value):
        return value / (1 + np.exp(-value))

    one, other = silu(1.0), silu(-1.0)
    np.testing.assert_allclose(keys[0, 0], [[one, other], [other, one]], rtol=1e-5)
    bias = tf.constant([[0.0, UNSEEN], [0.0, 0.0]])
    block.mix(x, queries, keys, values, bias)
    block.out.kernel.assign(tf.eye(2))
    # Token 1: its own value times a positive weight; the norm makes [1, -1] of it, the gates are
    # [silu 1, silu -1].
    expected = [1 + one, -1 - other]
    found = block.mix(x, queries, keys, values, bias)
    np.testing.assert_allclose(found[0], expected, rtol=1e-3)
    # Token 2 attends to both, by silu of their products over 4, which do not add up to one; before
    # the norm it is w1 [one, other] + w2 [other, one].
    both = silu(2 * one * other) / 4, silu(one**2 + other**2) / 4
    sign = np.sign(both[0] * (one - other) + both[1] * (other - one))
    expected = [-1 + sign * other, 1 - sign * one]
    np.testing.assert_allclose(found[1], expected, rtol=1e-3)
