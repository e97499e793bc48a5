"""From a score matrix to a loss: pure functions, each with its equation.

Training builds scores `[num_queries, num_columns]`. Three choices are independent:

    which candidates are columns     twotower/objective/negatives.py
    how scores are corrected         temperature, and a weight for each column: log-Q, hits masked
    how the matrix becomes a number  this file

Example i pairs a query with its positive, whose score is s+. Every loss sees the other columns c of
that row as negatives with scores s_c and weights w_c = exp(log_weight), 0 where a column is none:

    softmax               -log [exp s+ / (exp s+ + sum_c w_c exp s_c)]
    binary_cross_entropy  -log sigmoid(s+) - ratio * mean_c log(1 - sigmoid(s_c))
    gbce                  the same with -beta log sigmoid(s+), beta from the rate of sampling
    triplet               mean, hardest or semi-hard over c of max(0, margin - s+ + s_c)
    cosine_contrastive    1 - s+ + ratio * mean_c max(0, s_c - margin)

where mean_c is weighted by w_c. With w_c = 1 for every other item of the catalogue `softmax` is the
full softmax, the ideal that the others stand in for.

Weights carry two things. A batch of 4,096 MovieLens examples holds some 1,650 distinct items and
several examples of the same user, and equal columns hold equal scores, so each distinct query and
item is scored once, and its column counts n_c times. And a column that a sampler brings n_c times,
expected E[n_c] times, stands for n_c / E[n_c] items of the catalogue: that is log-Q. In the batch,
E[n_c] = (B - 1) p_c, with p_c the share of item c among the training examples (where g examples
share a query and mask one another, B - g others are draws: w_c is then too small by a factor of
(B - g) / (B - 1), two thousandths at B = 4,096 and g = 8):

| correction     | w_c                 | hits                        | `tfrs.tasks.Retrieval`      |
|----------------|---------------------|-----------------------------|-----------------------------|
| none           | n_c                 | negatives, or `own` masked  | as it is; `score_mask`      |
| log_q          | n_c / p_c           | negatives; s+ corrected too | `candidate_sampling_...`    |
| log_q_masked   | n_c / ((B - 1) p_c) | masked                      | cannot: it corrects s+, too |

A hit is a column that is the positive again (an accidental hit), or any other item that the user is
known to like (`own`). `log_q` is Yi et al., RecSys 2019, section 3. `log_q_masked` leaves the
positive uncorrected, which is what masking needs (arXiv 2507.09331): with masked hits and a
corrected positive the gradient does not tend to that of the full softmax however large the batch.

`tfrs.tasks.Retrieval` carries the batch's negatives with any of the losses, by `RetrievalLoss`, at
a fixed temperature. What it cannot: other pools, negatives of each query's own (mined ones,
impressions), distinct rows, `log_q_masked`, a temperature that moves. And `num_hardest` counts
distinct items here and takes those of the highest scores, where there each copy in the batch is one
and scores are corrected before.
"""

from collections.abc import Callable

from twotower.tf import tf

CORRECTIONS = ("none", "log_q", "log_q_masked")
MININGS = ("all", "semi_hard", "hardest")  # of a triplet's negative

# Stands for minus infinity in a logit; a real one would make NaN of an all-masked row's gradient.
MASKED = -1e9


def column_log_weight(
    count: tf.Tensor, probability: tf.Tensor, num_draws: tf.Tensor, correction: str
) -> tf.Tensor:
    """log w_c of each column of a pool.

    Args:
        count: `[num_columns]`, n_c, how often the pool holds this item.
        probability: `[num_columns]`, p_c, the probability that a draw of the pool is this item;
            positive, as a pool has no column that it cannot draw.
        num_draws: Scalar, the pool's draws; for the batch, its examples but the one itself, B - 1.
        correction: One of `CORRECTIONS`.

    Returns:
        `[num_columns]` float32.
    """
    log_count = tf.math.log(tf.cast(count, tf.float32))
    if correction == "none":
        return log_count
    if correction == "log_q":
        return log_count - tf.math.log(probability)
    if correction == "log_q_masked":
        draws = tf.maximum(tf.cast(num_draws, tf.float32), 1.0)
        return log_count - tf.math.log(draws * probability)
    raise ValueError(f"correction must be one of {CORRECTIONS}; got {correction!r}.")


def block_weight(
    num_items: int, num_draws: tf.Tensor, correction: str, as_draws: bool
) -> tf.Tensor:
    """w of a negative of a query's own, beside `num_draws` columns that all rows share.

    Those weigh W together, in expectation:

    | correction     | W                     | an item: W / num_items | a draw: W / num_draws |
    |----------------|-----------------------|------------------------|-----------------------|
    | log_q          | num_draws * num_items | num_draws              | num_items             |
    | log_q_masked   | num_items             | 1                      | num_items / num_draws |

    As an item it is one more of the catalogue that the row has seen in full, however it was found:
    with all items for its own a row has the full softmax twice, and no share of mined negatives
    does harm. As a draw it stands for as many items as a shared one, as where mined negatives are
    appended to a batch (Huang et al., KDD 2020, section 6.1): the row then believes that the
    catalogue is full of what it found hardest. Without correction every column weighs 1, and so
    does this.

    Args:
        num_items: Size of the catalogue.
        num_draws: Scalar, draws of all pools together.
        correction: One of `CORRECTIONS`.
        as_draws: Whether as a draw.

    Returns:
        Scalar float32.
    """
    if correction == "none":
        return tf.constant(1.0)
    draws = tf.maximum(tf.cast(num_draws, tf.float32), 1.0)
    weight = num_items / draws if as_draws else tf.constant(1.0)
    return weight * draws if correction == "log_q" else weight


def hardest(scores: tf.Tensor, log_weight: tf.Tensor, number: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The `number` highest-scoring negatives of each row (online hard negatives).

    Args:
        scores: `[num_rows, num_columns]`.
        log_weight: `[num_rows, num_columns]`.
        number: 1 or more; all are taken where there are fewer columns.

    Returns:
        Both `[num_rows, number]`. A row with fewer negatives has masked places.
    """
    open_scores = tf.where(log_weight > MASKED / 2, scores, MASKED)
    _, places = tf.math.top_k(open_scores, tf.minimum(number, tf.shape(scores)[1]))
    return tf.gather(scores, places, batch_dims=1), tf.gather(log_weight, places, batch_dims=1)


# The losses. Each takes
#     positive    [num_examples], s+
#     negatives   [num_rows, num_columns], s_c
#     log_weight  [num_rows, num_columns], log w_c; MASKED where a column is no negative
#     row         [num_examples], the row of each example; None where rows are examples
# and returns [num_examples] float32.


def _of(values: tf.Tensor, row: tf.Tensor | None) -> tf.Tensor:
    return values if row is None else tf.gather(values, row)


def _weighted_mean(values: tf.Tensor, log_weight: tf.Tensor) -> tf.Tensor:
    """Mean over columns, `[num_rows]`; 0 where a row has no negative."""
    top = tf.reduce_max(log_weight, 1, keepdims=True)
    weight = tf.where(log_weight > MASKED / 2, tf.exp(log_weight - top), 0.0)
    return tf.math.divide_no_nan(tf.reduce_sum(weight * values, 1), tf.reduce_sum(weight, 1))


def softmax(positive, negatives, log_weight, row=None) -> tf.Tensor:
    """l = -log [exp s+ / (exp s+ + sum_c w_c exp s_c)], over whatever the columns are.

    All of the catalogue: full softmax. Those drawn from it: sampled softmax (Jean et al., ACL 2015,
    section 3). The other items of the batch: in-batch softmax (Yi et al., RecSys 2019).
    """
    rest = tf.reduce_logsumexp(negatives + log_weight, 1)
    return tf.math.softplus(_of(rest, row) - positive)


def binary_cross_entropy(positive, negatives, log_weight, row=None, ratio=1.0) -> tf.Tensor:
    """l = -log sigmoid(s+) - ratio * mean_c log(1 - sigmoid(s_c)).

    Args:
        positive: s+, as in all losses here.
        negatives: s_c.
        log_weight: log w_c.
        row: Row of each example.
        ratio: Negatives a positive; with one drawn at random it is SASRec's loss (Kang and
            McAuley, ICDM 2018, section III-E).
    """
    wrong = _weighted_mean(tf.math.softplus(negatives), log_weight)
    return tf.math.softplus(-positive) + ratio * _of(wrong, row)


def gbce_beta(sampling_rate: float, calibration: float) -> float:
    """beta = alpha (t (1 - 1/alpha) + 1/alpha): Petrov and Macdonald, RecSys 2023, equation 14.

    Args:
        sampling_rate: alpha, negatives a positive over the other items of the catalogue, (0, 1].
        calibration: t in [0, 1]: 0 for plain cross-entropy, 1 for calibrated probabilities.

    Raises:
        ValueError: Outside these ranges.
    """
    if not 0 < sampling_rate <= 1 or not 0 <= calibration <= 1:
        raise ValueError(
            f"the sampling rate must lie in (0, 1] and the calibration in [0, 1]; got "
            f"{sampling_rate} and {calibration}."
        )
    return sampling_rate * (calibration * (1 - 1 / sampling_rate) + 1 / sampling_rate)


def gbce(positive, negatives, log_weight, row=None, ratio=1.0, beta=1.0) -> tf.Tensor:
    """l = -beta log sigmoid(s+) - ratio * mean_c log(1 - sigmoid(s_c)) (gSASRec, section 5).

    Few negatives a positive make cross-entropy overconfident: it never learns how many items there
    are. beta < 1 (`gbce_beta`) takes that back.
    """
    wrong = _weighted_mean(tf.math.softplus(negatives), log_weight)
    return beta * tf.math.softplus(-positive) + ratio * _of(wrong, row)


def triplet(positive, negatives, log_weight, row=None, margin=0.2, mining="all") -> tf.Tensor:
    """l = max(0, margin - s+ + s_c): the mean over negatives, or for one of them.

    Args:
        positive: s+; larger is more alike, unlike the distances of the papers.
        negatives: s_c.
        log_weight: log w_c; picks, and weighs the mean of `all`.
        row: Row of each example.
        margin: By how much s+ should exceed s_c, in scores as they are: no temperature.
        mining: `all`; `hardest`, the largest s_c; or `semi_hard`, the largest s_c below s+, and
            where there is none the smallest (FaceNet, CVPR 2015, section 3.2).

    Raises:
        ValueError: Another mining.
    """
    negatives, log_weight = _of(negatives, row), _of(log_weight, row)
    is_open = log_weight > MASKED / 2
    if mining == "all":
        hinge = tf.nn.relu(margin - positive[:, None] + negatives)
        return _weighted_mean(hinge, log_weight)
    if mining == "hardest":
        chosen = tf.reduce_max(tf.where(is_open, negatives, MASKED), 1)
    elif mining == "semi_hard":
        is_below = is_open & (negatives < positive[:, None])
        below = tf.reduce_max(tf.where(is_below, negatives, MASKED), 1)
        least = tf.reduce_min(tf.where(is_open, negatives, -MASKED), 1)
        chosen = tf.where(below > MASKED / 2, below, least)
    else:
        raise ValueError(f"mining must be one of {MININGS}; got {mining!r}.")
    return tf.where(tf.reduce_any(is_open, 1), tf.nn.relu(margin - positive + chosen), 0.0)


def cosine_contrastive(
    positive, negatives, log_weight, row=None, margin=0.4, ratio=1.0
) -> tf.Tensor:
    """l = 1 - s+ + ratio * mean_c max(0, s_c - margin) (SimpleX, CIKM 2021, equation 1).

    Args:
        positive: s+, a cosine: towers of length 1, no temperature.
        negatives: s_c.
        log_weight: log w_c.
        row: Row of each example.
        margin: Negatives below it cost nothing.
        ratio: Weight of the negatives (w in the paper).
    """
    wrong = _weighted_mean(tf.nn.relu(negatives - margin), log_weight)
    return 1.0 - positive + ratio * _of(wrong, row)


# Scores that are held at a time: few enough to stay in the processor's cache.
BLOCK_SCORES = 2**20


def log_normaliser(
    queries: tf.Tensor, items: tf.Tensor, weight: tf.Tensor, own: tf.Tensor | None = None
) -> tf.Tensor:
    """sum_q weight_q log Z_q,  Z_q = sum_c exp(q . v_c): the full softmax's part over all items.

    With it -log(exp s+ / Z) is a sum of log Z and a dot product, and the matrix of scores is never
    held: its rows come in blocks, and a block leaves behind its share of the gradient,

        d/dq = weight_q sum_c p_qc v_c,  d/dv_c = sum_q weight_q p_qc q,  p_qc = exp(q . v_c) / Z_q

    a third of the time and a few MB, where TensorFlow's ops would pass over the whole matrix eight
    times.

    Args:
        queries: `[num_queries, dim]`, divided by the temperature.
        items: `[num_items, dim]`, each item of the catalogue once.
        weight: `[num_queries]`, the weight of a query's examples together.
        own: `[num_queries, num_items]` bool, items that a query's Z leaves out.

    Returns:
        Scalar float32.
    """

    @tf.custom_gradient
    def total(queries: tf.Tensor, items: tf.Tensor, weight: tf.Tensor):
        return _log_normaliser(queries, items, weight, own)

    return total(queries, items, weight)


def _log_normaliser(queries, items, weight, own):
    """`log_normaliser` and its gradient."""
    num_queries, dim = tf.shape(queries)[0], items.shape[1]
    rows = tf.clip_by_value(BLOCK_SCORES // tf.shape(items)[0], 16, 4096)
    num_blocks = tf.maximum((num_queries + rows - 1) // rows, 1)

    def block(number, log_z, by_query, by_item):
        of_block = slice(number * rows, (number + 1) * rows)
        part = queries[of_block]
        scores = tf.linalg.matmul(part, items, transpose_b=True)  # [rows, num_items]
        if own is not None:
            scores = tf.where(own[of_block], MASKED, scores)
        top = tf.reduce_max(scores, 1, keepdims=True)
        scores = tf.exp(scores - top)
        z = tf.reduce_sum(scores, 1, keepdims=True)
        share = weight[of_block, None] / z
        by_query = by_query.write(number, tf.linalg.matmul(scores, items) * share)
        by_item += tf.linalg.matmul(scores, part * share, transpose_a=True)
        return number + 1, log_z.write(number, (tf.math.log(z) + top)[:, 0]), by_query, by_item

    arrays = [
        tf.TensorArray(tf.float32, num_blocks, element_shape=shape, infer_shape=False)
        for shape in ([None], [None, dim])
    ]
    _, log_z, by_query, by_item = tf.while_loop(
        lambda number, *_: number < num_blocks, block, (0, *arrays, tf.zeros_like(items))
    )
    log_z, by_query = log_z.concat(), by_query.concat()

    def gradient(upstream):
        return upstream * by_query, upstream * by_item, upstream * log_z

    return tf.tensordot(log_z, weight, 1), gradient


LOSSES: dict[str, Callable] = {
    "softmax": softmax,
    "bce": binary_cross_entropy,
    "gbce": gbce,
    "triplet": triplet,
    "cosine_contrastive": cosine_contrastive,
}


class RetrievalLoss(tf.keras.losses.Loss):
    """Any of `LOSSES` as the loss of `tfrs.tasks.Retrieval`.

    The task makes a matrix `[num_examples, num_candidates]` with a one-hot label a row and has
    already divided it by the temperature, corrected it by log-Q and pushed masked places and
    accidental hits far down; whatever lies there is no negative.

    Args:
        name: One of `LOSSES`.
        reduction: Keras' reduction; the default is the mean, so that the learning rate does not
            depend on the batch.
        **parameters: Of the function, such as `margin`.

    >>> import tensorflow as tf
    >>> loss = RetrievalLoss("triplet", margin=0.5, mining="hardest")
    >>> scores = tf.constant([[0.9, 0.6], [0.1, 0.9]])
    >>> round(float(loss(tf.eye(2), scores)), 4)  # (.2 + 0) / 2
    0.1
    """

    def __init__(
        self,
        name: str = "softmax",
        reduction: str = tf.keras.losses.Reduction.SUM_OVER_BATCH_SIZE,
        **parameters,
    ) -> None:
        if name not in LOSSES:
            raise ValueError(f"the loss must be one of {[*LOSSES]}; got {name!r}.")
        super().__init__(reduction=reduction, name=name)
        self.parameters = parameters

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        is_label = y_true > 0.5
        positive = tf.reduce_sum(tf.where(is_label, y_pred, 0.0), 1)
        closed = is_label | (y_pred < MASKED / 2)
        log_weight = tf.where(closed, MASKED, 0.0)
        negatives = tf.where(closed, 0.0, y_pred)
        return LOSSES[self.name](positive, negatives, log_weight, **self.parameters)

    def get_config(self) -> dict:
        return {"reduction": self.reduction, "name": self.name, **self.parameters}
