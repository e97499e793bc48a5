"""From a score matrix to a loss: pure functions, each with its equation.

Training builds scores `[num_queries, num_columns]`. Three choices are independent:

    which candidates are columns     twotower/negatives.py (here: the other items of the batch)
    how scores are corrected         temperature, log-Q, accidental hits, the user's own positives
    how the matrix becomes a number  this file

Example i of the batch pairs query r_i with the item in column c_i. In its plain form every example
is a row and a column of its own, r_i = c_i = i, which is what `tfrs.tasks.Retrieval` computes. A
batch of 4,096 MovieLens examples holds some 1,650 distinct items and several examples of the same
user, and equal columns hold equal scores. So here each distinct query and item is scored once, and
a column carries the logarithm of its weight, w_c = how often the item stands in the batch, over
what log-Q asks for. Same loss, a fraction of the work:

    none             l_i = -s(r_i, c_i) + log sum_c n_c exp s(r_i, c)
    log_q            l_i = -s(r_i, c_i) + log sum_c n_c / p_c exp s(r_i, c)  + log p(c_i)
    log_q_masked     l_i = -s(r_i, c_i)
                           + log[exp s(r_i, c_i) + sum_{c not hit} n_c / ((B-1) p_c) exp s(r_i, c)]

with s = (query . candidate) / temperature, n_c the count of c's item in the batch, p_c the
probability that a random example is of that item, B the number of examples. A hit is a column that
is the positive again: of the example (accidental hits), or any other item that the user is known to
like (`own`). `log_q` is Yi et al., RecSys 2019, section 3; `log_q_masked` leaves the positive
uncorrected, which is what masking needs (arXiv 2507.09331): with masked hits and a corrected
positive the gradient does not tend to that of the full softmax however large the batch.

| correction     | own masked | through `tfrs.tasks.Retrieval`                                     |
|----------------|------------|--------------------------------------------------------------------|
| none           | no         | as it is                                                           |
| none           | yes        | `score_mask`                                                       |
| log_q          | no         | `candidate_sampling_probability`                                   |
| log_q          | yes        | refused: hits and log-Q are one choice                             |
| log_q_masked   | no, yes    | cannot: it corrects every column, the positive's too               |
"""

from twotower import require_legacy_keras

require_legacy_keras()
import tensorflow as tf  # noqa: E402

CORRECTIONS = ("none", "log_q", "log_q_masked")

# Stands for minus infinity in a logit; a real one would make NaN of an all-masked row's gradient.
MASKED = -1e9


def column_log_weight(
    count: tf.Tensor, probability: tf.Tensor, num_examples: tf.Tensor, correction: str
) -> tf.Tensor:
    """log w_c of each column.

    Args:
        count: `[num_columns]`, how many examples of the batch are of this item.
        probability: `[num_columns]`, p_c, the probability that a random example is of this item.
        num_examples: Scalar, examples in the batch.
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
        others = tf.maximum(tf.cast(num_examples, tf.float32) - 1.0, 1.0)
        return log_count - tf.math.log(others * probability)
    raise ValueError(f"correction must be one of {CORRECTIONS}; got {correction!r}.")


def in_batch_softmax(
    scores: tf.Tensor,
    row: tf.Tensor,
    column: tf.Tensor,
    count: tf.Tensor,
    probability: tf.Tensor,
    correction: str = "log_q_masked",
    own: tf.Tensor | None = None,
) -> tf.Tensor:
    """Softmax cross-entropy of each example's positive against the columns of the batch.

    Args:
        scores: `[num_queries, num_columns]`, over the temperature already.
        row: `[num_examples]` int, the query of each example.
        column: `[num_examples]` int, the column of its positive.
        count: `[num_columns]`, examples of each column's item.
        probability: `[num_columns]`, p_c.
        correction: One of `CORRECTIONS`.
        own: `[num_queries, num_columns]` bool, True where the item is a positive of that query's
            user. Such columns are no negatives; the example's own positive counts once.

    Returns:
        `[num_examples]` float32, one loss an example.
    """
    log_weight = column_log_weight(count, probability, tf.shape(row)[0], correction)
    row, column = tf.cast(row, tf.int32), tf.cast(column, tf.int32)
    positive = tf.gather_nd(scores, tf.stack([row, column], 1))  # [num_examples]
    logits = scores + log_weight  # [num_queries, num_columns]
    if own is not None:
        logits = tf.where(own, MASKED, logits)
        negatives = tf.gather(tf.reduce_logsumexp(logits, 1), row)  # [num_examples]
        return tf.math.softplus(negatives - positive)

    total = tf.gather(tf.reduce_logsumexp(logits, 1), row)
    weight = tf.gather(log_weight, column)
    if correction != "log_q_masked":
        # The label is one copy of its column, w_c / n_c of the column's weight.
        log_count = tf.math.log(tf.cast(tf.gather(count, column), tf.float32))
        return total - (positive + weight - log_count)
    # Take the positive's column out of the sum and put it back with weight 1:
    # log(exp(total) + (1 - w) exp(positive)), written relative to the larger of the two. The
    # difference costs digits where w is large: an absolute error of some w * 6e-8.
    top = tf.maximum(total, positive)
    rest = tf.exp(total - top) + (1.0 - tf.exp(weight)) * tf.exp(positive - top)
    return top + tf.math.log(tf.maximum(rest, tf.exp(positive - top))) - positive
