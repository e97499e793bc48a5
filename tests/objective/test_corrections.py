"""Corrections of sampled columns: what they weigh, and the gradient of the full softmax that they
tend to."""

import itertools

import numpy as np
import pytest
from batch_losses import LOG, in_batch

from twotower.objective import losses
from twotower.objective.corrections import CORRECTIONS, MASKED, column_log_weight, hardest
from twotower.objective.hard_negatives import HardNegatives
from twotower.objective.negatives import NegativesConfig, Targets
from twotower.objective.task import RetrievalTask, TaskConfig
from twotower.tf import tf


def test_hardest_keeps_the_highest_negatives():
    scores = tf.constant([[0.9, 0.1, 0.5, 0.7], [0.2, 0.3, 0.1, 0.0]])
    log_weight = tf.constant([[MASKED, 1.0, 2.0, 3.0], [MASKED, MASKED, MASKED, 4.0]])
    kept, weight = hardest(scores, log_weight, 2)
    assert kept[0].numpy().tolist() == pytest.approx([0.7, 0.5])
    assert weight[0].numpy().tolist() == [3.0, 2.0]
    assert kept[1, 0] == 0.0 and weight[1].numpy().tolist() == [4.0, MASKED]
    assert hardest(scores, log_weight, 9)[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("correction", "first", "second"),
    [
        # A batch of three has two draws, each for two of four items: shared columns weigh 1 / (2 p)
        # = 2. The hard negative of the first query, whose exp score is 5, weighs 1; the second
        # one's stands there twice.
        ("log_q_masked", 2 + 2 * (1 + 3) + 5, 4 + 2 * (3 + 2) + 2 * 1),
        # All divided by p = 1 / 4, the positive too: 4 times the exp scores, and 2.
        ("log_q", 4 * (2 + 1 + 3) + 2 * 5, 4 * (4 + 3 + 2) + 2 * 2 * 1),
        # Nothing is corrected: each column weighs 1.
        ("none", 2 + 1 + 3 + 5, 4 + 3 + 2 + 2 * 1),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_what_a_hard_negative_weighs(correction, masked, first, second):
    masked = masked and correction != "log_q"  # which corrects hits and does not mask them
    config = TaskConfig(temperature=1.0, correction=correction, mask_known_positives=masked)
    # Rows are queries, columns the items 0 to 3; item 3 is nobody's column but a hard negative.
    queries = tf.constant(LOG([[2, 1, 3, 5], [3, 4, 2, 1], [1, 1, 1, 1]]), tf.float32)
    negatives = NegativesConfig(num_impressions=1)
    targets = Targets(
        tf.range(3),
        tf.range(3),
        tf.constant([1.0, 1.0, 0.0]),
        tf.fill([3], 0.25),
        {},
        tf.constant([[3, -1], [3, 3], [-1, -1]]),
    )
    items = tf.eye(4)
    columns, positives = HardNegatives(negatives, np.full(4, 0.25), 4)(
        targets, lambda keys: tf.gather(items, keys), correction
    )
    assert columns.keys.numpy().tolist() == [0, 1, 2, 3]
    loss = RetrievalTask(config, 4, negatives)(
        queries,
        positives,
        targets,
        columns,
        known=tf.eye(3, 4, dtype=tf.bool) if masked else None,
    )
    of_positive = 4 if correction == "log_q" else 1
    expected = LOG(first / (2 * of_positive)) + LOG(second / (4 * of_positive))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_unknown_correction_names_the_choices():
    with pytest.raises(ValueError, match="log_q_masked"):
        column_log_weight(tf.constant([1]), tf.constant([0.5]), tf.constant(1), "logq")


def all_batches(num_items, num_others, p):
    """How often each item is among the others of a batch, for every batch, and the probability."""
    bars = itertools.combinations(range(num_others + num_items - 1), num_items - 1)
    edges = np.array([(-1, *bar, num_others + num_items - 1) for bar in bars])
    count = np.diff(edges, axis=1) - 1
    log_factorial = np.cumsum(LOG(np.maximum(1, np.arange(num_others + 1))))
    log_chance = log_factorial[num_others] - log_factorial[count].sum(1) + count @ LOG(p)
    return count, np.exp(log_chance)


def gradient_error(way, batch_size):
    """Relative error of the mean gradient over all batches against that of the full softmax."""
    scores, p = np.array([0.3, 1.5, -0.4, 0.8, 0.0]), np.array([0.2, 0.5, 0.05, 0.15, 0.1])
    count, chance = all_batches(5, batch_size - 1, p)
    assert chance.sum() == pytest.approx(1)
    s = tf.constant(np.tile(scores, (len(count), 1)))
    log_p, draws = LOG(p), LOG(batch_size - 1)
    with np.errstate(divide="ignore"):
        weight = LOG(count)
    if way != "none":
        weight = weight - log_p - (draws if way == "log_q_masked" else 0)
    weight[~np.isfinite(weight)] = MASKED
    if "masked" in way:
        weight[:, 0] = MASKED  # the positive, item 0
    with tf.GradientTape() as tape:
        tape.watch(s)
        positive = s[:, 0] - (0 if way in ("none", "log_q_masked") else log_p[0])
        loss = losses.softmax(positive, s, tf.constant(weight))
        total = tf.reduce_sum(loss * chance)
    mean = tape.gradient(total, s).numpy().sum(0)
    full = np.exp(scores) / np.exp(scores).sum() - np.eye(5)[0]
    return np.linalg.norm(mean - full) / np.linalg.norm(full)


def test_corrections_tend_to_the_full_softmax_gradient():
    """By enumeration of every batch: plain in-batch softmax never gets there, log-Q does as the
    batch grows, no finite batch is unbiased, and where hits are masked the positive has to stay
    uncorrected (arXiv 2507.09331)."""
    sizes = (2, 4, 8, 16, 32)
    error = {
        way: np.array([gradient_error(way, size) for size in sizes])
        for way in ("none", "log_q", "log_q_masked", "masked, positive corrected")
    }
    for way in ("log_q", "log_q_masked"):
        assert (np.diff(error[way]) < 0).all()
        assert 0.003 < error[way][-1] < 0.1 * error[way][0]
        # It falls as 1 / B: with twice the batch by about a half.
        assert 0.4 < error[way][-1] / error[way][-2] < 0.6
    for way, least in (("none", 0.3), ("masked, positive corrected", 0.1)):
        assert error[way][-1] > least and error[way][-1] > error[way][-2]


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_task_weighs_columns_as_the_enumeration_does(correction):
    # Items 0, 0, 1, 1, 1 and 2: the first example's loss with the weights written out.
    item, p = np.array([0, 0, 1, 1, 1, 2]), np.float32([0.5, 0.3, 0.2])
    scores = np.array([0.7, -0.2, 1.1])
    first = np.eye(6)[0] * 6
    config = TaskConfig(temperature=1.0, correction=correction, mask_known_positives=False)
    queries = tf.constant(scores[None], tf.float32)
    loss = in_batch(config, queries, np.eye(3, dtype="f4"), np.zeros(6, int), item, p, None, first)
    weight = {
        "none": np.array([1, 3, 1]),
        "log_q": np.array([1, 3, 1]) / p,
        "log_q_masked": np.array([0, 3, 1]) / (5 * p),
    }[correction]
    positive = scores[0] - (LOG(p[0]) if correction == "log_q" else 0)
    rest = (weight * np.exp(scores)).sum()
    assert float(loss) == pytest.approx(LOG(np.exp(positive) + rest) - positive, rel=1e-5)
