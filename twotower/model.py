"""TwoTowerModel: two towers and a retrieval task under one `tfrs.Model`."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from twotower import require_legacy_keras

require_legacy_keras()
import tensorflow as tf  # noqa: E402
import tensorflow_recommenders as tfrs  # noqa: E402

from twotower import losses  # noqa: E402
from twotower.towers.dense import Tower  # noqa: E402


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """How the score matrix becomes a loss; the table in `losses.py` says what each choice means.

    Attributes:
        temperature: Scores are divided by it, in training only.
        correction: `none`, `log_q` or `log_q_masked`.
        mask_own: Whether the user's other positives are no negatives of the user's examples.
        sum_loss: Whether a batch's losses are summed, as TFRS does by default, instead of averaged:
            then the right learning rate depends on the batch size. For reproducing tutorials.
        unique: Whether each distinct query and item of a batch is scored once (fast), or each
            example is a row and a column for `tfrs.tasks.Retrieval` as it is.
    """

    temperature: float = 0.1
    correction: str = "log_q_masked"
    mask_own: bool = True
    sum_loss: bool = False
    unique: bool = True

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive; got {self.temperature}.")
        if self.correction not in losses.CORRECTIONS:
            raise ValueError(
                f"correction must be one of {losses.CORRECTIONS}; got {self.correction!r}."
            )
        if self.correction == "log_q" and self.mask_own:
            raise ValueError(
                "log_q corrects every column, hits among them, so it goes with mask_own=False; "
                "to mask the user's own positives take correction='log_q_masked' or 'none'."
            )
        if self.correction == "log_q_masked" and not self.unique:
            raise ValueError(
                "tfrs.tasks.Retrieval corrects the positive's column too, so log_q_masked needs "
                "unique=True."
            )


class InBatchRetrieval(tfrs.tasks.Retrieval):
    """`tfrs.tasks.Retrieval` that scores each distinct query and item of a batch once.

    The same loss, metrics and place in a `tfrs.Model`; only the arguments say which query and
    which column belong to an example. See `losses.py` for the equations.
    """

    def __init__(self, config: TaskConfig, metrics=None) -> None:
        super().__init__(metrics=metrics, temperature=config.temperature)
        self.config = config

    def call(
        self,
        query_embeddings: tf.Tensor,
        candidate_embeddings: tf.Tensor,
        row: tf.Tensor,
        column: tf.Tensor,
        count: tf.Tensor,
        probability: tf.Tensor,
        sample_weight: tf.Tensor,
        own: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Mean loss of a batch, or its sum.

        Args:
            query_embeddings: `[num_queries, dim]`, distinct queries.
            candidate_embeddings: `[num_columns, dim]`, distinct items.
            row: `[num_examples]`, the query of each example.
            column: `[num_examples]`, the column of each example's item.
            count: `[num_columns]`, examples of each item.
            probability: `[num_columns]`, p_c of each item.
            sample_weight: `[num_examples]`.
            own: `[num_queries, num_columns]` bool, positives of each query's user.
        """
        scores = tf.linalg.matmul(query_embeddings, candidate_embeddings, transpose_b=True)
        scores /= self.config.temperature  # [num_queries, num_columns]
        loss = losses.in_batch_softmax(
            scores, row, column, count, probability, self.config.correction, own
        )
        reduce = tf.reduce_sum if self.config.sum_loss else tf.reduce_mean
        return reduce(loss * sample_weight)


class TwoTowerModel(tfrs.Model):
    """Query tower, item tower and their retrieval task.

    Trains on batches of `TrainingBatches` (twotower/training.py):

        query    encoded inputs of the query tower, `[num_queries, ...]`
        row      query of each example, `[num_examples]`
        item     key of each example's item, `[num_examples]`
        weight   `[num_examples]`
        own      keys of each query's user's positives, `[num_queries, n]`, padded with -1
        timed    inputs of the item tower that depend on the example's time, `[num_examples]`

    Args:
        query_tower: Encoded inputs -> `[num_queries, dim]`.
        item_tower: Encoded inputs -> `[num_items, dim]`.
        items: Encoded inputs of all items of the catalogue, row = key.
        probability: `[num_items]`, p_c of each item (`negatives.py`).
        config: The task.
        metrics: `tfrs.metrics.FactorizedTopK` for validation, or None.
    """

    def __init__(
        self,
        query_tower: Tower,
        item_tower: Tower,
        items: Mapping[str, tf.Tensor],
        probability: np.ndarray,
        config: TaskConfig,
        metrics: tfrs.metrics.FactorizedTopK | None = None,
    ) -> None:
        super().__init__()
        if query_tower.dim != item_tower.dim:
            raise ValueError(
                f"both towers must end in vectors of one length; the query tower's is "
                f"{query_tower.dim}, the item tower's {item_tower.dim}."
            )
        self.query_tower, self.item_tower = query_tower, item_tower
        # A tuple, not a dict attribute: Keras would track these tables as saved state.
        self._items = tuple((name, tf.constant(values)) for name, values in items.items())
        self._probability = tf.constant(probability, tf.float32)
        self.config = config
        if config.unique:
            self.task = InBatchRetrieval(config, metrics)
        else:
            self.task = tfrs.tasks.Retrieval(
                # The default loss is a sum, which would tie the learning rate to the batch size.
                loss=tf.keras.losses.CategoricalCrossentropy(
                    from_logits=True,
                    reduction=(
                        tf.keras.losses.Reduction.SUM
                        if config.sum_loss
                        else tf.keras.losses.Reduction.SUM_OVER_BATCH_SIZE
                    ),
                ),
                metrics=metrics,
                temperature=config.temperature,
            )

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return self._probability.shape[0]

    def item_vectors(self, keys: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Vectors of items by key, `[num_keys, dim]`."""
        return self.item_tower(
            {name: tf.gather(values, keys) for name, values in self._items}, training=training
        )

    def train_step(self, inputs: dict) -> dict:
        """One step. Without data it does nothing: Keras starts a step to learn that an epoch has
        ended, and what needs no gradient (the count of steps, weight decay) would run or not."""
        with tf.control_dependencies(tf.nest.flatten(inputs)):
            return super().train_step(inputs)

    def compute_loss(self, inputs: dict, training: bool = False) -> tf.Tensor:
        """Mean loss of a batch; in validation also updates FactorizedTopK."""
        if not training and self.task.factorized_metrics:
            return self._validate(inputs)
        queries = self.query_tower(self.query_tower.encode(inputs["query"]), training=training)
        if self.config.unique and not inputs.get("timed"):
            return self._unique_loss(queries, inputs, training)
        return self._plain_loss(queries, inputs, training)

    def _unique_loss(self, queries, inputs, training):
        items, column, count = tf.unique_with_counts(inputs["item"])
        return self.task(
            queries,
            self.item_vectors(items, training),
            row=inputs["row"],
            column=column,
            count=count,
            probability=tf.gather(self._probability, items),
            sample_weight=inputs["weight"],
            own=self._own_columns(inputs["own"], items) if self.config.mask_own else None,
        )

    def _plain_loss(self, queries, inputs, training):
        """Every example is a row and a column."""
        keys = inputs["item"]  # [num_examples]
        encoded = {name: tf.gather(values, keys) for name, values in self._items}
        vectors = self.item_tower(encoded | inputs.get("timed", {}), training=training)
        examples = tf.range(tf.shape(keys)[0])
        own = None
        if self.config.mask_own:
            own = tf.gather(self._own_columns(inputs["own"], keys), inputs["row"])
        if self.config.unique:
            return self.task(
                tf.gather(queries, inputs["row"]),
                vectors,
                row=examples,
                column=examples,
                count=tf.ones_like(keys),
                probability=tf.gather(self._probability, keys),
                sample_weight=inputs["weight"],
                own=own,
            )
        diagonal = tf.eye(tf.shape(keys)[0], dtype=tf.bool)
        return self.task(
            tf.gather(queries, inputs["row"]),
            vectors,
            sample_weight=inputs["weight"],
            candidate_sampling_probability=(
                tf.gather(self._probability, keys) if self.config.correction == "log_q" else None
            ),
            score_mask=None if own is None else ~own | diagonal,
            compute_metrics=False,
        )

    def _own_columns(self, own: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """Which columns are positives of each query's user, `[num_queries, num_columns]` bool.

        Args:
            own: `[num_queries, n]` keys, padded with -1.
            columns: `[num_columns]` keys; duplicates are allowed.
        """
        items, item_of_column = tf.unique(columns)
        num_places = tf.size(items) + 1
        # Place of each key among the batch's items; 0 for padding and for items not in the batch.
        place = tf.scatter_nd(
            items[:, None] + 1, tf.range(1, num_places), [self.num_items + 1]
        )  # [num_items + 1]
        present = tf.math.bincount(
            tf.gather(place, own + 1),
            minlength=num_places,
            maxlength=num_places,
            axis=-1,
            binary_output=True,
        )  # [num_queries, num_places]
        return tf.gather(present, item_of_column + 1, axis=1) > 0

    def _validate(self, inputs):
        queries = self.query_tower(self.query_tower.encode(inputs["query"]), training=False)
        queries = tf.gather(queries, inputs["row"])  # [num_examples, dim]
        vectors = self.item_vectors(inputs["item"])
        for metric in self.task.factorized_metrics:
            metric.update_state(
                queries, vectors, true_candidate_ids=inputs["item"], sample_weight=inputs["weight"]
            )
        return tf.constant(0.0)
