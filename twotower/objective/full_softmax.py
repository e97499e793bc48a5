"""The softmax over the whole catalogue without its matrix: every item is a column once.

Where the score is a dot product, -log(exp s+ / Z) is the logarithm of Z minus the positive's score.
Z needs all scores of a query, but only their sum, so the matrix is never held.
"""

from twotower.objective.corrections import MASKED
from twotower.objective.negatives import Columns
from twotower.objective.task import RetrievalTask
from twotower.tf import tf

# Scores that are held at a time: few enough to stay in the processor's cache.
BLOCK_SCORES = 2**20


def log_normaliser(
    queries: tf.Tensor, items: tf.Tensor, weight: tf.Tensor, known: tf.Tensor | None = None
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
        known: `[num_queries, num_items]` bool, items that a query's Z leaves out.

    Returns:
        Scalar float32.
    """

    @tf.custom_gradient
    def total(queries: tf.Tensor, items: tf.Tensor, weight: tf.Tensor):
        return _log_normaliser(queries, items, weight, known)

    return total(queries, items, weight)


def _log_normaliser(queries, items, weight, known):
    """`log_normaliser` and its gradient."""
    num_queries, dim = tf.shape(queries)[0], items.shape[1]
    rows = tf.clip_by_value(BLOCK_SCORES // tf.shape(items)[0], 16, 4096)
    num_blocks = tf.maximum((num_queries + rows - 1) // rows, 1)

    def block(number, log_z, by_query, by_item):
        of_block = slice(number * rows, (number + 1) * rows)
        part = queries[of_block]
        scores = tf.linalg.matmul(part, items, transpose_b=True)  # [rows, num_items]
        if known is not None:
            scores = tf.where(known[of_block], MASKED, scores)
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


class FullSoftmax(RetrievalTask):
    """`RetrievalTask` with loss `softmax` over negatives `catalogue`, in a third of the time."""

    def call(
        self,
        query_embeddings: tf.Tensor,
        positive_embeddings: tf.Tensor,
        row: tf.Tensor | None,
        item: tf.Tensor,
        columns: Columns,
        sample_weight: tf.Tensor,
        log_probability: tf.Tensor | None = None,
        known: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """As `RetrievalTask.call`. Where examples share a query and its known positives are masked,
        each example adds its own positive to Z, and the matrix is held after all."""
        if known is not None and row is not None:
            return super().call(
                query_embeddings,
                positive_embeddings,
                row,
                item,
                columns,
                sample_weight,
                log_probability,
                known,
            )
        queries = query_embeddings / self.temperature  # [num_queries, dim]
        of_example = queries if row is None else tf.gather(queries, row)  # [num_examples, dim]
        positive = self.pairs(of_example, positive_embeddings)  # [num_examples]
        weight = sample_weight
        if row is not None:
            weight = tf.math.unsorted_segment_sum(weight, row, tf.shape(queries)[0])
        if known is not None:  # The positive stays in Z, even if the user had it before.
            column = tf.searchsorted(columns.keys, item)  # the keys of a catalogue ascend
            at = tf.stack([tf.range(tf.size(item)), column], 1)
            known = tf.tensor_scatter_nd_update(known, at, tf.zeros_like(item, tf.bool))
        log_z = log_normaliser(queries, columns.vectors, weight, known)
        return log_z - tf.tensordot(positive, sample_weight, 1)
