"""The softmax over the whole catalogue, in which every item is a column, without the score matrix.

The loss -log(exp s+ / Z) is log Z - s+, where Z is the sum of exp(score) over all items. That sum
can be computed block by block, so the matrix of all scores is never in memory.
"""

from twotower.objective.corrections import MASKED
from twotower.objective.negatives import Columns, Targets
from twotower.objective.task import RetrievalTask
from twotower.tf import tf

# Scores in memory at a time: few enough to stay in the processor's cache.
BLOCK_SCORES = 2**20


def log_normaliser(
    queries: tf.Tensor, items: tf.Tensor, weight: tf.Tensor, known: tf.Tensor | None = None
) -> tf.Tensor:
    """sum_q weight_q log Z_q, where Z_q = sum_c exp(q . v_c) over all items c.

    The forward pass computes the scores in blocks of rows. Each block also adds its part of the
    gradient, so the backward pass needs no scores:

        d/dq = weight_q sum_c p_qc v_c,  d/dv_c = sum_q weight_q p_qc q,  p_qc = exp(q . v_c) / Z_q

    This takes a few MB. TensorFlow's own operations would read and write the whole matrix eight
    times.

    Args:
        queries: `[num_queries, dim]`, divided by the temperature.
        items: `[num_items, dim]`, each item of the catalogue once.
        weight: `[num_queries]`, sum of the weights of a query's examples.
        known: `[num_queries, num_items]` bool, items that are left out of a query's Z.

    Returns:
        Scalar float32.

    >>> two_items = tf.constant([[0.0, 0.0], [0.0, 0.0]])
    >>> float(tf.exp(log_normaliser(tf.constant([[1.0, 2.0]]), two_items, tf.ones([1]))))
    2.0
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
    """`RetrievalTask` for loss `softmax` and negatives `catalogue`, without the score matrix.

    >>> from twotower.objective.config import NegativesConfig, TaskConfig
    >>> config = TaskConfig(temperature=1.0, correction="none")
    >>> task = FullSoftmax(config, 2, NegativesConfig(("catalogue",)))
    >>> columns = Columns(tf.constant([0, 1]), tf.zeros([2]), tf.eye(2))
    >>> each, none = tf.ones(2), tf.zeros([2, 0], tf.int32)
    >>> targets = Targets(tf.range(2), tf.constant([0, 1]), each, each / 2, {}, none)
    >>> loss = task(tf.eye(2), tf.eye(2), targets, columns)
    >>> round(float(loss), 4)  # two examples of log(1 + 1 / e)
    0.6265
    """

    def call(
        self,
        query_embeddings: tf.Tensor,
        positive_embeddings: tf.Tensor,
        targets: Targets,
        columns: Columns,
        known: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """As `RetrievalTask.call`: a scalar float32.

        If known positives are masked and `targets.row` is given, several examples may share a
        query. Then Z differs between them, since each adds its own positive, so the score matrix
        is computed.
        """
        query_index, item, weight = targets.row, targets.item, targets.weight
        if known is not None and query_index is not None:
            return super().call(query_embeddings, positive_embeddings, targets, columns, known)
        queries = query_embeddings / self.temperature  # [num_queries, dim]
        # [num_examples, dim]
        of_example = queries if query_index is None else tf.gather(queries, query_index)
        positive = self.pairs(of_example, positive_embeddings)  # [num_examples]
        if query_index is not None:
            weight = tf.math.unsorted_segment_sum(weight, query_index, tf.shape(queries)[0])
        if known is not None:  # The positive stays in Z, even if the user had it before.
            column = tf.searchsorted(columns.keys, item)  # the keys of a catalogue ascend
            cells = tf.stack([tf.range(tf.size(item)), column], 1)
            known = tf.tensor_scatter_nd_update(known, cells, tf.zeros_like(item, tf.bool))
        log_z = log_normaliser(queries, columns.vectors, weight, known)
        return log_z - tf.tensordot(positive, targets.weight, 1)
