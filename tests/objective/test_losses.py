"""Losses by hand on a 2x2 matrix, against numpy, and as Keras losses in tfrs.tasks.Retrieval."""

import numpy as np
import pytest
from batch_losses import LOG, in_batch, loss_of
from enumerated_losses import enumerated

from twotower.objective import config as choices
from twotower.objective import losses
from twotower.objective.corrections import MASKED
from twotower.objective.losses import LOSSES
from twotower.objective.task import TaskConfig, loss_parameters
from twotower.objective.tfrs_task import RetrievalLoss
from twotower.tf import tf, tfrs


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


def of_matrix(name, scores, **parameters):
    """Each example's loss where example i pairs query i with item i."""
    matrix = tf.constant(scores, tf.float32)
    off = tf.where(tf.eye(len(scores)) > 0, MASKED, 0.0)
    return LOSSES[name](tf.linalg.diag_part(matrix), matrix, off, **parameters).numpy()


def test_every_loss_by_hand():
    # sigmoid(log 3) = 3/4, sigmoid(-log 3) = 1/4, sigmoid(0) = 1/2.
    scores = [[LOG(3), 0.0], [-LOG(3), 0.0]]
    # The positive at 3/4, the negative at 1/2: -log(3/4) - log(1/2). Then 1/2 and 1 - 1/4.
    expected = [LOG(4 / 3) + LOG(2), LOG(2) + LOG(4 / 3)]
    np.testing.assert_allclose(of_matrix("bce", scores), expected, rtol=1e-6)
    # Three negatives a positive weigh the negative's part three times.
    expected = [LOG(4 / 3) + 3 * LOG(2), LOG(2) + 3 * LOG(4 / 3)]
    np.testing.assert_allclose(of_matrix("bce", scores, ratio=3), expected, rtol=1e-6)
    # beta = 1/2 takes the root of the positive's probability.
    expected = [LOG(4 / 3) / 2 + LOG(2), LOG(2) / 2 + LOG(4 / 3)]
    np.testing.assert_allclose(of_matrix("gbce", scores, beta=0.5), expected, rtol=1e-6)
    # 0 - log 3 is 1.1 under the positive, more than the margin; -log 3 - 0, too. With margin 2:
    expected = [2 - LOG(3), 2 - LOG(3)]
    np.testing.assert_allclose(of_matrix("triplet", scores, margin=1), [0, 0])
    np.testing.assert_allclose(of_matrix("triplet", scores, margin=2), expected, rtol=1e-6)
    # 1 - s+ and what the negative is over .4.
    scores = [[0.9, 0.6], [0.1, 0.5]]
    found = of_matrix("cosine_contrastive", scores, margin=0.4, ratio=2)
    np.testing.assert_allclose(found, [0.1 + 2 * 0.2, 0.5], rtol=1e-6)


def test_which_negative_a_triplet_takes():
    # Positive .5; negatives .7 (harder), .4 and .3 (semi-hard within .2), -1 (easy).
    scores = np.float32([[0.5, 0.7, 0.4, 0.3, -1.0]])
    off = np.float32([[MASKED, 0, 0, 0, 0]])

    def of(mining, weight=off):
        return float(losses.triplet(scores[:, 0], scores, weight, margin=0.2, mining=mining)[0])

    assert of("hardest") == pytest.approx(0.2 + 0.2)
    assert of("semi_hard") == pytest.approx(0.2 - 0.1)
    assert of("all") == pytest.approx((0.4 + 0.1 + 0 + 0) / 4)
    # None is below the positive: the easiest of the harder ones.
    assert of("semi_hard", np.float32([[MASKED, 0, *[MASKED] * 3]])) == pytest.approx(0.4)
    # The harder one weighs three times the others.
    assert of("all", np.float32([[MASKED, LOG(3), 0, 0, 0]])) == pytest.approx((1.2 + 0.1) / 6)


def test_a_task_can_name_every_loss():
    assert {*choices.LOSSES} == {*LOSSES}


def test_gbce_beta():
    # 256 negatives of 3,416 items: alpha = 256 / 3415.
    assert losses.gbce_beta(256 / 3415, 0.0) == pytest.approx(1)
    assert losses.gbce_beta(256 / 3415, 1.0) == pytest.approx(256 / 3415)
    assert losses.gbce_beta(0.1, 0.75) == pytest.approx(0.1 * (0.75 * (1 - 10) + 10))
    for rate, calibration in ((0, 0.5), (1.1, 0.5), (0.5, -0.1), (0.5, 1.1)):
        with pytest.raises(ValueError, match="must lie in"):
            losses.gbce_beta(rate, calibration)


PARAMETERS = {
    "softmax": {},
    "bce": {"ratio": 3.0},
    "gbce": {"ratio": 3.0, "beta": 0.3},
    "triplet": {"margin": 0.3},
    "cosine_contrastive": {"margin": 0.1, "ratio": 2.0},
}
CASES = [*PARAMETERS.items(), *[("triplet", {"mining": m}) for m in ("semi_hard", "hardest")]]


@pytest.fixture
def matrix():
    """Scores of 3 queries and 5 columns, their weights, and 4 examples in 3 rows."""
    rng = np.random.default_rng(3)
    weight = rng.exponential(size=(3, 5)) * (rng.random((3, 5)) < 0.7)
    weight[2] = 0  # nothing but the positive
    log_weight = np.where(weight > 0, LOG(np.maximum(weight, 1e-9)), MASKED)
    return rng.normal(size=4), rng.normal(size=(3, 5)), weight, log_weight, np.array([0, 1, 1, 2])


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_equals_its_equation(name, parameters, matrix):
    positive, negatives, weight, log_weight, row = matrix
    want = [
        enumerated(name, p, negatives[r], weight[r], **parameters) for p, r in zip(positive, row)
    ]
    tensors = [tf.constant(values, tf.float32) for values in (positive, negatives, log_weight)]
    found = LOSSES[name](*tensors, query_index=tf.constant(row), **parameters)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    # Rows that are examples.
    each = LOSSES[name](tensors[0], *(tf.gather(t, row) for t in tensors[1:]), **parameters)
    np.testing.assert_allclose(each, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_gradient_equals_finite_differences(name, parameters, matrix):
    positive, negatives, _, log_weight, row = matrix
    values = [tf.constant(v, tf.float64) for v in (positive, negatives)]

    def loss(positive, negatives):
        weight = tf.constant(log_weight, tf.float64)
        return tf.reduce_sum(LOSSES[name](positive, negatives, weight, row, **parameters))

    with tf.GradientTape() as tape:
        tape.watch(values)
        total = loss(*values)
    gradients = [tf.convert_to_tensor(each) for each in tape.gradient(total, values)]
    for at, (value, gradient) in enumerate(zip(values, gradients)):
        for place in np.ndindex(*value.shape):
            step = np.zeros(value.shape)
            step[place] = 1e-6
            ends = [float(loss(*values[:at], value + d, *values[at + 1 :])) for d in (step, -step)]
            difference = (ends[0] - ends[1]) / 2e-6
            assert float(gradient[place]) == pytest.approx(difference, abs=1e-5), place


@pytest.mark.parametrize("name", LOSSES)
def test_keras_loss_in_tfrs_equals_the_matrix(name):
    """`RetrievalLoss` in `tfrs.tasks.Retrieval`, masks and all: the same loss and gradients."""
    has_margin = name in ("triplet", "cosine_contrastive")
    temperature, margin = (1.0, {"margin": 0.3}) if has_margin else (0.5, {})
    config = TaskConfig(loss=name, temperature=temperature, correction="none", **margin)
    rng = np.random.default_rng(0)
    queries, items = (tf.Variable(rng.normal(size=(9, 4)).astype("f4") / 2) for _ in range(2))
    own = np.eye(9, dtype=bool) | (rng.random((9, 9)) < 0.2)
    everyone = np.arange(9)
    with tf.GradientTape(persistent=True) as tape:
        one = in_batch(config, queries, items, everyone, everyone, np.ones(9) / 9, own)
        task = tfrs.tasks.Retrieval(
            RetrievalLoss(name, **loss_parameters(config, 9)), temperature=temperature
        )
        other = task(queries, items, score_mask=~own | np.eye(9, dtype=bool))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for variable in (queries, items):
        one_gradient, other_gradient = (
            tf.convert_to_tensor(tape.gradient(loss, variable)) for loss in (one, other)
        )
        np.testing.assert_allclose(one_gradient, other_gradient, atol=1e-5)


def test_keras_loss_says_what_it_is():
    loss = RetrievalLoss("triplet", margin=0.5)
    again = RetrievalLoss.from_config(loss.get_config())
    assert again.get_config() == {"reduction": loss.reduction, "name": "triplet", "margin": 0.5}
    with pytest.raises(ValueError, match="softmax"):
        RetrievalLoss("hinge")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("own", [True, False])
def test_a_batch_of_one_and_of_one_item(name, own):
    """No negative: softmax and triplet have nothing to learn, the others pull the positive up."""
    config = TaskConfig(loss=name, temperature=1.0, mask_known_positives=own)
    alone = {"softmax": 0, "triplet": 0, "cosine_contrastive": 1 - 0.5}
    expected = alone.get(name, np.log1p(np.exp(-0.5)))
    if name == "gbce":
        expected *= loss_parameters(config, 1)["beta"]
    for num in (1, 3):
        queries, row, column = tf.constant([[0.5]] * num), np.arange(num), np.zeros(num, int)
        mask = np.ones((num, 1), bool) if own else None
        with tf.GradientTape() as tape:
            tape.watch(queries)
            loss = in_batch(config, queries, np.float32([[1.0]]), row, column, [1.0], mask)
        assert float(loss) == pytest.approx(expected, abs=1e-6)
        assert np.isfinite(tape.gradient(loss, queries)).all()


def test_loss_stays_finite_where_everything_is_masked_and_for_large_scores():
    own = [[True, True]]
    assert loss_of([[90.0, -90.0]], [0], [0], [1, 0], [0.5, 0.5], "log_q_masked", own) == [0.0]
    # Rare item, in the batch once, w = 1 / ((2-1) * 1e-4) = 1e4; its own column must drop out:
    # log(exp(20) + exp(0) / .9999) - 20 = 2.06e-9, up to the rounding of 1e4 * 6e-8.
    loss = loss_of([[20.0, 0.0]], [0, 0], [0, 1], [1, 1], [1e-4, 0.9999], "log_q_masked")
    assert 0 <= loss[0] < 6e-4
