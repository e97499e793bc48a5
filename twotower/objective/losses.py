"""From a score matrix to a loss: pure functions, each with its equation.

Training computes scores `[num_queries, num_columns]`. Three choices are independent:

    which candidates are columns     twotower/objective/negatives.py
    how scores are corrected         twotower/objective/corrections.py
    how the matrix becomes a number  this file

An example is a query and its positive item, whose score is s+. The other columns c of the query's
row are its negatives, with scores s_c and weights w_c = exp(log_weight). A column that is not a
negative has weight 0.

    softmax               -log [exp s+ / (exp s+ + sum_c w_c exp s_c)]
    binary_cross_entropy  -log sigmoid(s+) - ratio * mean_c log(1 - sigmoid(s_c))
    gbce                  the same with -beta log sigmoid(s+), beta from the rate of sampling
    triplet               mean, hardest or semi-hard over c of max(0, margin - s+ + s_c)
    cosine_contrastive    1 - s+ + ratio * mean_c max(0, s_c - margin)

Here mean_c is the mean weighted by w_c. If every other item of the catalogue is a column with w_c =
1, `softmax` is the full softmax, which sampled softmax losses approximate.

    >>> loss = softmax(tf.constant([0.9]), tf.constant([[0.1, 0.5]]), tf.zeros([1, 2]))
    >>> round(float(loss[0]), 4)  # log(e^.9 + e^.1 + e^.5) - .9
    0.7513
"""

from collections.abc import Callable

from twotower.objective.config import MININGS
from twotower.objective.corrections import MASKED
from twotower.tf import tf

# `[...]` are shapes. Each loss takes
#     positive     [num_examples], s+
#     negatives    [num_queries, num_columns], s_c
#     log_weight   [num_queries, num_columns], log w_c; MASKED where a column is not a negative
#     query_index  [num_examples], the query of each example; None if query i is example i
# and returns [num_examples] float32.


def _of(values: tf.Tensor, query_index: tf.Tensor | None) -> tf.Tensor:
    return values if query_index is None else tf.gather(values, query_index)


def _weighted_mean(values: tf.Tensor, log_weight: tf.Tensor) -> tf.Tensor:
    """Mean over columns, weighted by w_c, `[num_queries]`; 0 for a query without negatives."""
    top = tf.reduce_max(log_weight, 1, keepdims=True)
    weight = tf.where(log_weight > MASKED / 2, tf.exp(log_weight - top), 0.0)
    return tf.math.divide_no_nan(tf.reduce_sum(weight * values, 1), tf.reduce_sum(weight, 1))


def softmax(
    positive: tf.Tensor,
    negatives: tf.Tensor,
    log_weight: tf.Tensor,
    query_index: tf.Tensor | None = None,
) -> tf.Tensor:
    """l = -log [exp s+ / (exp s+ + sum_c w_c exp s_c)].

    It is the full softmax if the columns are the whole catalogue, sampled softmax if they are drawn
    from it (Jean et al., ACL 2015, section 3), and in-batch softmax if they are the other items of
    the batch (Yi et al., RecSys 2019, section 3).
    """
    rest = tf.reduce_logsumexp(negatives + log_weight, 1)
    return tf.math.softplus(_of(rest, query_index) - positive)


def binary_cross_entropy(
    positive: tf.Tensor,
    negatives: tf.Tensor,
    log_weight: tf.Tensor,
    query_index: tf.Tensor | None = None,
    ratio: float = 1.0,
) -> tf.Tensor:
    """l = -log sigmoid(s+) - ratio * mean_c log(1 - sigmoid(s_c)).

    Args:
        positive: `[num_examples]`, s+.
        negatives: `[num_queries, num_columns]`, s_c.
        log_weight: `[num_queries, num_columns]`, log w_c.
        query_index: `[num_examples]`, query of each example.
        ratio: Number of negatives for each positive. With one uniform negative this is SASRec's
            loss (Kang and McAuley, ICDM 2018, section III-E).

    Returns:
        `[num_examples]`.
    """
    wrong = _weighted_mean(tf.math.softplus(negatives), log_weight)
    return tf.math.softplus(-positive) + ratio * _of(wrong, query_index)


def gbce_beta(sampling_rate: float, calibration: float) -> float:
    """beta = alpha (t (1 - 1/alpha) + 1/alpha): Petrov and Macdonald, RecSys 2023, equation 14.

    Args:
        sampling_rate: alpha in (0, 1]: negatives for each positive, divided by the number of the
            other items of the catalogue.
        calibration: t in [0, 1]: 0 for plain cross-entropy, 1 for calibrated probabilities.

    Raises:
        ValueError: Arguments outside these ranges.

    >>> gbce_beta(0.1, calibration=0.0), round(gbce_beta(0.1, calibration=1.0), 4)
    (1.0, 0.1)
    """
    if not 0 < sampling_rate <= 1 or not 0 <= calibration <= 1:
        raise ValueError(
            f"the sampling rate must lie in (0, 1] and the calibration in [0, 1]; got "
            f"{sampling_rate} and {calibration}."
        )
    return sampling_rate * (calibration * (1 - 1 / sampling_rate) + 1 / sampling_rate)


def gbce(
    positive: tf.Tensor,
    negatives: tf.Tensor,
    log_weight: tf.Tensor,
    query_index: tf.Tensor | None = None,
    ratio: float = 1.0,
    beta: float = 1.0,
) -> tf.Tensor:
    """l = -beta log sigmoid(s+) - ratio * mean_c log(1 - sigmoid(s_c)).

    Cross-entropy with few negatives for each positive gives too high probabilities, since the model
    never sees how many items there are. beta < 1 (`gbce_beta`) corrects this (gSASRec; Petrov and
    Macdonald, RecSys 2023, section 5).

    Args:
        positive: `[num_examples]`, s+.
        negatives: `[num_queries, num_columns]`, s_c.
        log_weight: `[num_queries, num_columns]`, log w_c.
        query_index: `[num_examples]`, query of each example.
        ratio: Number of negatives for each positive.
        beta: As `gbce_beta` returns it; 1 for plain cross-entropy.

    Returns:
        `[num_examples]`.
    """
    wrong = _weighted_mean(tf.math.softplus(negatives), log_weight)
    return beta * tf.math.softplus(-positive) + ratio * _of(wrong, query_index)


def triplet(
    positive: tf.Tensor,
    negatives: tf.Tensor,
    log_weight: tf.Tensor,
    query_index: tf.Tensor | None = None,
    margin: float = 0.2,
    mining: str = "all",
) -> tf.Tensor:
    """l = max(0, margin - s+ + s_c): the mean over all negatives, or the value for one of them.

    Args:
        positive: `[num_examples]`, s+. It is a similarity, so larger is better; the papers use
            distances.
        negatives: `[num_queries, num_columns]`, s_c.
        log_weight: `[num_queries, num_columns]`, log w_c. It says which columns are negatives, and
            weighs the mean of `all`.
        query_index: `[num_examples]`, query of each example.
        margin: By how much s+ should exceed s_c, in units of the score. Scores are not divided by a
            temperature.
        mining: Which negatives count: `all`; `hardest`, the one with the largest s_c; or
            `semi_hard`, the one with the largest s_c below s+, or with the smallest s_c if there is
            none below (FaceNet; Schroff et al., CVPR 2015, section 3.2).

    Returns:
        `[num_examples]`.

    Raises:
        ValueError: An unknown `mining`.
    """
    negatives, log_weight = _of(negatives, query_index), _of(log_weight, query_index)
    is_negative = log_weight > MASKED / 2
    if mining == "all":
        hinge = tf.nn.relu(margin - positive[:, None] + negatives)
        return _weighted_mean(hinge, log_weight)
    if mining == "hardest":
        chosen = tf.reduce_max(tf.where(is_negative, negatives, MASKED), 1)
    elif mining == "semi_hard":
        is_below = is_negative & (negatives < positive[:, None])
        below = tf.reduce_max(tf.where(is_below, negatives, MASKED), 1)
        least = tf.reduce_min(tf.where(is_negative, negatives, -MASKED), 1)
        chosen = tf.where(below > MASKED / 2, below, least)
    else:
        raise ValueError(f"mining must be one of {MININGS}; got {mining!r}.")
    return tf.where(tf.reduce_any(is_negative, 1), tf.nn.relu(margin - positive + chosen), 0.0)


def cosine_contrastive(
    positive: tf.Tensor,
    negatives: tf.Tensor,
    log_weight: tf.Tensor,
    query_index: tf.Tensor | None = None,
    margin: float = 0.2,
    ratio: float = 1.0,
) -> tf.Tensor:
    """l = 1 - s+ + ratio * mean_c max(0, s_c - margin) (SimpleX, CIKM 2021, equation 1).

    Args:
        positive: `[num_examples]`, s+, a cosine: the towers' vectors have length 1, and scores are
            not divided by a temperature.
        negatives: `[num_queries, num_columns]`, s_c.
        log_weight: `[num_queries, num_columns]`, log w_c.
        query_index: `[num_examples]`, query of each example.
        margin: A negative whose cosine is below it adds nothing to the loss.
        ratio: Weight of the negatives (w in the paper).

    Returns:
        `[num_examples]`.
    """
    wrong = _weighted_mean(tf.nn.relu(negatives - margin), log_weight)
    return 1.0 - positive + ratio * _of(wrong, query_index)


LOSSES: dict[str, Callable] = {
    "softmax": softmax,
    "bce": binary_cross_entropy,
    "gbce": gbce,
    "triplet": triplet,
    "cosine_contrastive": cosine_contrastive,
}
