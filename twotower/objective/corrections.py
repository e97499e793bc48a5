"""How scores are corrected: the weight of each column of the score matrix. Log-Q is defined here.

A batch of 4,096 MovieLens examples has about 1,650 distinct items, and several examples of the same
user. Two columns of the same item have the same scores. So each distinct query and item is scored
once, and the column of item c has a weight w_c in place of 1. The weight says two things: how often
the item was drawn, n_c, and, under log-Q, how often it was expected to be drawn, E[n_c]. A column
then stands for n_c / E[n_c] items of the catalogue. For items of the batch E[n_c] = (B - 1) p_c,
where B is the number of examples in the batch and p_c the item's share of the training examples.
(If g examples share a query and mask each other's items, only B - g of the others are draws. Then
w_c is too small by a factor of (B - g) / (B - 1), which is 0.2% less for B = 4,096 and g = 8.)

| correction     | w_c                 | hits                        | `tfrs.tasks.Retrieval`      |
|----------------|---------------------|-----------------------------|-----------------------------|
| none           | n_c                 | negatives, or masked        | default; `score_mask`       |
| log_q          | n_c / p_c           | negatives; s+ corrected too | `candidate_sampling_...`    |
| log_q_masked   | n_c / ((B - 1) p_c) | masked                      | no: it also corrects s+     |

A hit is a column of the positive item itself (an accidental hit) or of another known positive of
the user. `log_q` is from Yi et al., RecSys 2019, section 3. `log_q_masked` does not correct the
positive's score s+, as masking requires (arXiv 2507.09331): with masked hits and a corrected
positive, the gradient would not approach that of the full softmax, however large the batch is.
"""

from twotower.objective.config import CORRECTIONS
from twotower.tf import tf

# Minus infinity in a logit. A true infinity would give a NaN gradient where all columns are masked.
MASKED = -1e9


def column_log_weight(
    count: tf.Tensor, probability: tf.Tensor, num_draws: tf.Tensor, correction: str
) -> tf.Tensor:
    """log w_c of each column of a pool.

    Args:
        count: `[num_columns]`, n_c: how often the pool drew the item.
        probability: `[num_columns]`, the probability that one draw of the pool is this item;
            greater than 0.
        num_draws: Scalar, number of draws of the pool. For the batch it is B - 1, the number of the
            other examples.
        correction: One of `CORRECTIONS`.

    Returns:
        `[num_columns]` float32.

    Raises:
        ValueError: An unknown correction.

    >>> weight = tf.exp(column_log_weight([2, 1], tf.constant([0.5, 0.1]), 4, "log_q_masked"))
    >>> weight.numpy().round(4).tolist()  # 2 / (4 * .5) and 1 / (4 * .1)
    [1.0, 2.5]
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


def hard_negative_weight(num_draws: tf.Tensor, correction: str) -> tf.Tensor:
    """The weight w of a hard negative, beside `num_draws` draws whose columns all rows share.

    A hard negative counts as one item of the catalogue. Under `log_q_masked` the expected weight of
    all shared columns is the number of items in the catalogue, so one item weighs 1. Under `log_q`
    all weights are `num_draws` times as large. Without a correction every draw weighs 1, and so
    does a hard negative.

    It could also count as one more draw, as where mined negatives are appended to a batch (Huang et
    al., KDD 2020, section 6.1). But then it would weigh as if the catalogue were full of such
    items: in our experiments many hard negatives made the training collapse.

    Args:
        num_draws: Scalar, number of draws of all pools together.
        correction: One of `CORRECTIONS`.

    Returns:
        Scalar float32.
    """
    if correction == "log_q":
        return tf.maximum(tf.cast(num_draws, tf.float32), 1.0)
    return tf.constant(1.0)


def column_of_item(keys: tf.Tensor, num_items: int) -> tf.Tensor:
    """The column of each item, counted from 1, `[num_items]` int32; 0 for an item without one.

    Args:
        keys: `[num_columns]` distinct int32 keys of the columns.
        num_items: Size of the catalogue.

    >>> column_of_item(tf.constant([2, 0]), 4).numpy().tolist()
    [2, 0, 1, 0]
    """
    return tf.scatter_nd(keys[:, None], tf.range(1, tf.size(keys) + 1), [num_items])


def column_counts(columns: tf.Tensor | tf.RaggedTensor, num_columns: tf.Tensor) -> tf.Tensor:
    """How often each column occurs in each row, `[num_rows, num_columns]` int32.

    Args:
        columns: `[num_rows, n]` int32, or ragged: columns counted from 1, as in `column_of_item`; 0
            for none.
        num_columns: Scalar int32.

    >>> column_counts(tf.constant([[1, 3, 1], [0, 2, 0]]), tf.constant(3)).numpy().tolist()
    [[2, 0, 1], [0, 1, 0]]
    """
    size = {"minlength": num_columns + 1, "maxlength": num_columns + 1}
    return tf.math.bincount(columns, **size, axis=-1)[:, 1:]


def known_columns(
    known: tf.RaggedTensor, keys: tf.Tensor, num_items: int, are_distinct: bool = False
) -> tf.Tensor:
    """Which columns are known positives of each query, `[num_queries, num_columns]` bool.

    Args:
        known: `[num_queries, (n)]` int32 keys.
        keys: `[num_columns]` int32 keys of the columns, -1 for an empty one.
        num_items: Size of the catalogue.
        are_distinct: Whether no key occurs twice and no column is empty. This case is faster.

    >>> known_columns(tf.ragged.constant([[2], [0, 2]]), tf.constant([2, 1]), 3).numpy().tolist()
    [[True, False], [True, False]]
    """
    if not are_distinct:
        items, item_of_column = tf.unique(tf.maximum(keys, 0))
        found = tf.gather(known_columns(known, items, num_items, True), item_of_column, axis=1)
        return found & (keys >= 0)
    columns = tf.gather(column_of_item(keys, num_items), known.flat_values)
    return column_counts(known.with_flat_values(columns), tf.size(keys)) > 0


def earlier_columns(
    known: tf.RaggedTensor,
    sequence: tf.Tensor,
    num_earlier: tf.Tensor,
    keys: tf.Tensor,
    num_items: int,
) -> tf.Tensor:
    """Which columns are items of the user's events before the target, `[num_examples, num_columns]`
    bool.

    In next-item training an item from before the target is masked, and an item from after it is a
    negative like any other. This needs an int32 and a bool for each target and item, which is 0.8
    GB for 3,200 targets and 50,000 items. For larger catalogues use in-batch negatives.

    Args:
        known: `[num_sequences, (n)]` int32 keys of each user's events, oldest first.
        sequence: `[num_examples]`, the sequence of each example.
        num_earlier: `[num_examples]`, how many events of its sequence come before the example.
        keys: `[num_columns]` distinct int32 keys of the columns.
        num_items: Size of the catalogue.
    """
    starts = tf.cast(known.row_splits, tf.int32)
    of_event = tf.cast(known.value_rowids(), tf.int32)
    number = tf.range(tf.size(of_event)) - tf.gather(starts, of_event)  # of each event, from 0
    never = tf.fill([tf.cast(known.nrows(), tf.int32), num_items], tf.int32.max)
    first = tf.tensor_scatter_nd_min(never, tf.stack([of_event, known.flat_values], 1), number)
    return tf.gather(tf.gather(first, keys, axis=1), sequence) < num_earlier[:, None]


def hardest(scores: tf.Tensor, log_weight: tf.Tensor, number: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The `number` highest-scoring negatives of each row (online hard negatives).

    Args:
        scores: `[num_rows, num_columns]`.
        log_weight: `[num_rows, num_columns]`.
        number: 1 or more. If there are fewer columns, all are taken.

    Returns:
        Scores and log weights of these negatives, both `[num_rows, number]`, highest score first. A
        row with fewer negatives has masked entries.
    """
    unmasked = tf.where(log_weight > MASKED / 2, scores, MASKED)
    _, best = tf.math.top_k(unmasked, tf.minimum(number, tf.shape(scores)[1]))
    return tf.gather(scores, best, batch_dims=1), tf.gather(log_weight, best, batch_dims=1)
