"""The retrieval task: from the vectors of queries and items to the loss, as one layer.

`RetrievalTask` takes the role of `tfrs.tasks.Retrieval` in a `tfrs.Model`. Over the columns of the
batch it gives the same loss; `tfrs_task.py` has the plain model, and its test compares the two.
`RetrievalTask` scores each distinct query and each distinct item of a batch once.
"""

import math

from twotower.objective import corrections, losses
from twotower.objective.config import LEARNED, NegativesConfig, TaskConfig, check_columns
from twotower.objective.negatives import Columns, Targets, of_all_replicas
from twotower.tf import tf, tfrs


def loss_parameters(config: TaskConfig, num_items: int) -> dict:
    """Keyword arguments of the loss function that `config` names.

    Args:
        config: The task.
        num_items: Items that may be drawn as negatives.

    >>> loss_parameters(TaskConfig(loss="bce", negative_ratio=4.0), num_items=100)
    {'ratio': 4.0}
    """
    ratio = config.negative_ratio
    if config.loss == "triplet":
        return {"margin": config.margin, "mining": config.triplet_mining}
    if config.loss == "cosine_contrastive":
        return {"margin": config.margin, "ratio": ratio}
    if config.loss == "gbce":
        rate = min(1.0, ratio / max(1, num_items - 1))
        return {"ratio": ratio, "beta": losses.gbce_beta(rate, config.calibration)}
    return {"ratio": ratio} if config.loss == "bce" else {}


class RetrievalTask(tf.keras.layers.Layer, tfrs.tasks.Task):
    """From the vectors of a batch to its loss.

    Args:
        config: The loss, the temperature and the correction.
        num_items: Items that may be drawn as negatives.
        negatives: Which candidates are columns.
        metrics: `tfrs.metrics.FactorizedTopK` for validation, or None.

    Raises:
        ValueError: As in `check_columns`.

    Example, with two examples whose queries score 1 for their item and 0 for the other one:

    >>> config = TaskConfig(temperature=1.0, correction="none")
    >>> task = RetrievalTask(config, 2, NegativesConfig(("batch",)))
    >>> columns = Columns(tf.constant([0, 1]), tf.zeros([2]), tf.eye(2))
    >>> each, none = tf.ones(2), tf.zeros([2, 0], tf.int32)
    >>> targets = Targets(tf.range(2), tf.constant([0, 1]), each, each / 2, {}, none)
    >>> loss = task(tf.eye(2), tf.eye(2), targets, columns)
    >>> round(float(loss), 4)  # two examples of log(1 + 1 / e)
    0.6265
    """

    def __init__(
        self,
        config: TaskConfig,
        num_items: int,
        negatives: NegativesConfig,
        metrics: tfrs.metrics.FactorizedTopK | None = None,
    ) -> None:
        super().__init__(name="task")
        check_columns(config, negatives)
        self.config, self.negatives = config, negatives
        self.factorized_metrics = [] if metrics is None else [metrics]
        self._parameters = loss_parameters(config, num_items)
        if config.learned_temperature:
            self.log_temperature = self.add_weight(
                name="log_temperature",
                shape=[],
                initializer=tf.keras.initializers.Constant(math.log(config.temperature)),
                # Not in the forward pass: clipped there, it would get no gradient past a bound.
                constraint=lambda value: tf.clip_by_value(value, *map(math.log, LEARNED)),
            )

    @property
    def temperature(self) -> tf.Tensor:
        """Scalar float32 by which scores are divided. A learned one stays in [.01, 1]."""
        if self.config.learned_temperature:
            return tf.exp(self.log_temperature)
        return tf.constant(self.config.temperature)

    def pairs(self, queries: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """The score of query i with item i: their dot product, `[n, dim]` and `[n, dim]` -> `[n]`.

        It must stay a dot product, since indexes search by that.
        """
        return tf.reduce_sum(queries * items, 1)

    def matrix(self, queries: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """The score of every query with every item, as in `pairs`, `[num_queries, num_items]`."""
        return tf.linalg.matmul(queries, items, transpose_b=True)

    def call(
        self,
        query_embeddings: tf.Tensor,
        positive_embeddings: tf.Tensor,
        targets: Targets,
        columns: Columns,
        known: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Sum of the losses of a batch's examples, each times its weight.

        Args:
            query_embeddings: `[num_queries, dim]`, distinct queries.
            positive_embeddings: `[num_examples, dim]`, the vector of each example's item.
            targets: The examples of the batch, each with its query (`row`), item and weight.
            columns: The candidates for negatives, with their vectors.
            known: `[num_queries, num_columns]` bool: which columns are known positives of the
                query's user. If `targets.row` is given, it must mark the items of the query's
                examples, too; otherwise the task masks them. None: no known positives are masked,
                and `_log_weight_of_hits` says how the example's own item counts.

        Returns:
            Scalar float32.
        """
        queries, query_index, item = query_embeddings, targets.row, targets.item
        of_example = queries if query_index is None else tf.gather(queries, query_index)
        positive = self.pairs(of_example, positive_embeddings) / self.temperature  # [num_examples]
        if self.config.correction == "log_q":
            positive -= tf.math.log(targets.probability)
        scores = self.matrix(queries, columns.vectors) / self.temperature  # [num_queries, columns]
        log_weight = columns.log_weight
        if known is None:  # Examples of one query differ in their hits, so each needs a row.
            hit = columns.keys == item[:, None]  # [num_examples, num_columns]
            if query_index is not None:
                scores = tf.gather(scores, query_index)
                if log_weight.shape.rank == 2:
                    log_weight = tf.gather(log_weight, query_index)
                query_index = None
            of_hits = self._log_weight_of_hits(columns.keys, log_weight, item)
            log_weight = tf.where(hit, of_hits, log_weight)
        else:
            if query_index is None:
                known |= columns.keys == item[:, None]
            log_weight = tf.where(known, corrections.MASKED, log_weight)
        if self.negatives.num_hardest:
            scores, log_weight = corrections.hardest(scores, log_weight, self.negatives.num_hardest)
        loss = losses.LOSSES[self.config.loss](
            positive, scores, log_weight, query_index, **self._parameters
        )  # [num_examples]
        return tf.tensordot(loss, targets.weight, 1)

    def _log_weight_of_hits(
        self, keys: tf.Tensor, log_weight: tf.Tensor, item: tf.Tensor
    ) -> tf.Tensor:
        """The log weight of a column whose item is the example's item (a hit), in the shape of
        `log_weight`.

        As in `tfrs.tasks.Retrieval`, the other n - 1 copies of the item in the batch are negatives,
        unless hits are masked. (Time-dependent items have a column for each of the n copies. Each
        of them then gets (n - 1) / n of its weight. The sum is right; what differs is the vector of
        a copy, by its age.)
        """
        hits_are_negatives = self.negatives.negatives == ("batch",)
        if self.config.correction == "log_q_masked" or not hits_are_negatives:
            return tf.fill(tf.shape(log_weight), corrections.MASKED)
        size = tf.reduce_max(keys) + 1
        count = tf.math.bincount(of_all_replicas(item), minlength=size, maxlength=size)
        count = tf.gather(tf.cast(count, tf.float32), keys)  # [num_columns]
        less = tf.math.log(tf.maximum(count - 1, 1e-30)) - tf.math.log(tf.maximum(count, 1))
        return tf.where(count > 1, log_weight + less, corrections.MASKED)
