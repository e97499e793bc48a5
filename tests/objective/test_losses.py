"""Losses by hand on a 2x2 matrix, against numpy and tfrs.tasks.Retrieval, and in the limit."""

import itertools

import numpy as np
import pytest

from twotower.objective import config as choices
from twotower.objective import full_softmax, losses
from twotower.objective.corrections import CORRECTIONS, MASKED, column_log_weight, hardest
from twotower.objective.full_softmax import FullSoftmax, log_normaliser
from twotower.objective.hard_negatives import HardNegatives
from twotower.objective.losses import LOSSES
from twotower.objective.negatives import Columns, NegativesConfig, Targets
from twotower.objective.task import RetrievalTask, TaskConfig, loss_parameters
from twotower.objective.tfrs_task import RetrievalLoss
from twotower.tf import tf, tfrs

LOG = np.log


def in_batch(config, queries, items, row, column, p, own=None, weight=None, **kwargs):
    """Mean loss over a batch whose columns are its distinct items."""
    count = np.bincount(column, minlength=items.shape[0])
    item = tf.constant(column, tf.int32)
    p = tf.constant(p, tf.float32)
    log_weight = column_log_weight(tf.constant(count), p, len(row) - 1, config.correction)
    weight = np.ones(len(row)) if weight is None else weight
    total = RetrievalTask(config, items.shape[0], NegativesConfig())(
        queries,
        tf.gather(items, item),
        query_index=tf.constant(row),
        item=item,
        columns=Columns(tf.range(items.shape[0]), log_weight, tf.convert_to_tensor(items)),
        sample_weight=tf.constant(weight, tf.float32),
        log_probability=tf.math.log(tf.gather(p, item)),
        known=own,
        **kwargs,
    )
    return total / len(row)


def loss_of(scores, row, column, count, probability, correction, own=None):
    """Each example's loss; the queries are rows of scores, and items axes."""
    assert np.bincount(column, minlength=len(count)).tolist() == list(count)
    config = TaskConfig(
        temperature=1.0, correction=correction, mask_known_positives=own is not None
    )
    queries, items = tf.constant(scores, tf.float32), np.eye(len(count), dtype="f4")
    own = own if own is None else tf.constant(own)
    return [
        float(in_batch(config, queries, items, row, column, probability, own, weight))
        for weight in len(row) * np.eye(len(row))
    ]


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


def enumerated(name, positive, negatives, weight, margin=0.2, ratio=1.0, beta=1.0, mining="all"):
    """One example's loss, in plain numpy; weight 0 where a column is no negative."""
    share = weight / weight.sum() if weight.any() else weight
    if name == "softmax":
        return -LOG(np.exp(positive) / (np.exp(positive) + (weight * np.exp(negatives)).sum()))
    if name in ("bce", "gbce"):
        right, wrong = 1 / (1 + np.exp(-positive)), 1 / (1 + np.exp(-negatives))
        return -beta * LOG(right) - ratio * (share * LOG(1 - wrong)).sum()
    if name == "cosine_contrastive":
        return 1 - positive + ratio * (share * np.maximum(0, negatives - margin)).sum()
    if mining == "all":
        return (share * np.maximum(0, margin - positive + negatives)).sum()
    there = negatives[weight > 0]
    if not len(there):
        return 0.0
    if mining == "semi_hard":
        below = there[there < positive]
        return max(0, margin - positive + (below.max() if len(below) else there.min()))
    return max(0, margin - positive + there.max())


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
        query_index=tf.range(3),
        item=targets.item,
        columns=columns,
        sample_weight=targets.weight,
        log_probability=tf.math.log(targets.probability),
        known=tf.eye(3, 4, dtype=tf.bool) if masked else None,
    )
    of_positive = 4 if correction == "log_q" else 1
    expected = LOG(first / (2 * of_positive)) + LOG(second / (4 * of_positive))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


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


def test_unknown_correction_names_the_choices():
    with pytest.raises(ValueError, match="log_q_masked"):
        column_log_weight(tf.constant([1]), tf.constant([0.5]), tf.constant(1), "logq")


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
    loss = RetrievalTask(config, 6, negatives)(
        queries,
        tf.gather(items, item),
        query_index=tf.range(6),
        item=tf.constant(item),
        columns=Columns(keys, tf.math.log(tf.cast(count, tf.float32)), tf.gather(items, keys)),
        sample_weight=tf.ones([6]),
    )
    assert (float(loss) == pytest.approx(float(expected), rel=1e-5)) == is_same


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


def test_loss_stays_finite_where_everything_is_masked_and_for_large_scores():
    own = [[True, True]]
    assert loss_of([[90.0, -90.0]], [0], [0], [1, 0], [0.5, 0.5], "log_q_masked", own) == [0.0]
    # Rare item, in the batch once, w = 1 / ((2-1) * 1e-4) = 1e4; its own column must drop out:
    # log(exp(20) + exp(0) / .9999) - 20 = 2.06e-9, up to the rounding of 1e4 * 6e-8.
    loss = loss_of([[20.0, 0.0]], [0, 0], [0, 1], [1, 1], [1e-4, 0.9999], "log_q_masked")
    assert 0 <= loss[0] < 6e-4


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
    item = tf.constant([3, 1, 1, 0, 2])
    # The second row's and the last one's items came before, too.
    own = tf.constant([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0]]) > 0

    def gradients(kind):
        with tf.GradientTape() as tape:
            tape.watch([queries, items])
            loss = kind(config, 4, NegativesConfig(("catalogue",)))(
                queries,
                tf.gather(items, item),
                query_index=None if query_index is None else tf.constant(query_index),
                item=item,
                columns=Columns(tf.range(4), tf.zeros([4]), items),
                sample_weight=tf.constant([1.0, 2.0, 0.0, 0.5, 1.0]),
                known=own if has_own else None,
            )
        return [loss, *map(tf.convert_to_tensor, tape.gradient(loss, [queries, items]))]

    for found, expected in zip(gradients(FullSoftmax), gradients(RetrievalTask)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
