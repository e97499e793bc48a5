"""How scores are corrected: what a column of the score matrix weighs. This is where log-Q stands.

A batch of 4,096 MovieLens examples holds some 1,650 distinct items and several examples of the same
user. Equal columns hold equal scores, so each distinct query and item is scored once, and the
column of item c weighs w_c in place of 1. The weight carries two things: how often the item was
drawn, n_c, and, under log-Q, how often it was expected. A column that a sampler brings n_c times,
expected E[n_c] times, stands for n_c / E[n_c] items of the catalogue. In the batch, E[n_c] = (B -
1) p_c, with B the examples of the batch and p_c the share of item c among the training examples.
(Where g examples share a query and mask one another, B - g others are draws. w_c is then too small
by a factor of (B - g) / (B - 1): two thousandths at B = 4,096 and g = 8.)

| correction     | w_c                 | hits                        | `tfrs.tasks.Retrieval`      |
|----------------|---------------------|-----------------------------|-----------------------------|
| none           | n_c                 | negatives, or masked        | as it is; `score_mask`      |
| log_q          | n_c / p_c           | negatives; s+ corrected too | `candidate_sampling_...`    |
| log_q_masked   | n_c / ((B - 1) p_c) | masked                      | cannot: it corrects s+, too |

A hit is a column that is the positive again (an accidental hit), or another known positive of the
user. `log_q` is Yi et al., RecSys 2019, section 3. `log_q_masked` leaves the positive uncorrected,
which is what masking needs (arXiv 2507.09331): with masked hits and a corrected positive the
gradient does not tend to that of the full softmax, however large the batch is.
"""

from twotower.objective.config import CORRECTIONS
from twotower.tf import tf

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


def hard_negative_weight(num_draws: tf.Tensor, correction: str) -> tf.Tensor:
    """w of one hard negative of a query, beside `num_draws` columns that all rows share.

    It counts as one more item of the catalogue that the row has seen, however it was found. Under
    `log_q_masked` the shared columns together weigh as much as the catalogue has items, so an item
    weighs 1. Under `log_q` they weigh `num_draws` times as much. Without correction every column
    weighs 1, and so does this.

    To count it as one more draw, as where mined negatives are appended to a batch (Huang et al.,
    KDD 2020, section 6.1), makes the row believe that the catalogue is full of what it found
    hardest. Measured here, many such negatives made a training collapse.

    Args:
        num_draws: Scalar, draws of all pools together.
        correction: One of `CORRECTIONS`.

    Returns:
        Scalar float32.
    """
    if correction == "log_q":
        return tf.maximum(tf.cast(num_draws, tf.float32), 1.0)
    return tf.constant(1.0)


def known_columns(known: tf.RaggedTensor, keys: tf.Tensor, num_items: int) -> tf.Tensor:
    """Which columns are known positives of each query, `[num_queries, num_columns]` bool.

    Args:
        known: `[num_queries, (n)]` int32 keys.
        keys: `[num_columns]` int32 keys of the columns, -1 for an empty one; a key may stand there
            more than once.
        num_items: Size of the catalogue.
    """
    items, item_of_column = tf.unique(keys)
    # Where each key, or -1, stands among `items`, counted from 1; 0 for what is no column.
    number = tf.scatter_nd(items[:, None] + 1, tf.range(1, tf.size(items) + 1), [num_items + 1])
    at = tf.gather(number, known.flat_values + 1)  # [num_known]
    row = tf.cast(known.value_rowids(), tf.int32)
    is_column = at > 0
    index = tf.boolean_mask(tf.stack([row, at - 1], 1), is_column)
    none = tf.zeros([tf.cast(known.nrows(), tf.int32), tf.size(items)], tf.bool)
    found = tf.tensor_scatter_nd_update(none, index, tf.ones(tf.shape(index)[:1], tf.bool))
    return tf.gather(found, item_of_column, axis=1)


def earlier_columns(
    known: tf.RaggedTensor,
    row: tf.Tensor,
    num_earlier: tf.Tensor,
    keys: tf.Tensor,
    num_items: int,
) -> tf.Tensor:
    """Which columns are among the first known positives of an example, `[num_examples,
    num_columns]`.

    For prefixes of a sequence: what came before the target is no answer, and what comes later is a
    negative as any other item is. This holds an int32 for each target and item: .8 GB for 3,200
    targets of 50,000 items. Larger catalogues take the batch's columns.

    Args:
        known: `[num_sequences, (n)]` int32 keys of each user's events, oldest first.
        row: `[num_examples]`, the sequence of each example.
        num_earlier: `[num_examples]`, how many of these events come before the example.
        keys: `[num_columns]` distinct int32 keys of the columns.
        num_items: Size of the catalogue.
    """
    starts = tf.cast(known.row_splits, tf.int32)
    sequence = tf.cast(known.value_rowids(), tf.int32)
    number = tf.range(tf.size(sequence)) - tf.gather(starts, sequence)  # of each event, from 0
    never = tf.fill([tf.cast(known.nrows(), tf.int32), num_items], tf.int32.max)
    first = tf.tensor_scatter_nd_min(never, tf.stack([sequence, known.flat_values], 1), number)
    return tf.gather(tf.gather(first, keys, axis=1), row) < num_earlier[:, None]


def hardest(scores: tf.Tensor, log_weight: tf.Tensor, number: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The `number` highest-scoring negatives of each row (online hard negatives).

    Args:
        scores: `[num_rows, num_columns]`.
        log_weight: `[num_rows, num_columns]`.
        number: 1 or more; all are taken where there are fewer columns.

    Returns:
        Both `[num_rows, number]`. A row with fewer negatives has masked entries.
    """
    unmasked = tf.where(log_weight > MASKED / 2, scores, MASKED)
    _, best = tf.math.top_k(unmasked, tf.minimum(number, tf.shape(scores)[1]))
    return tf.gather(scores, best, batch_dims=1), tf.gather(log_weight, best, batch_dims=1)
