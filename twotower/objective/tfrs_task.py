"""The plain way: a `tfrs.Model` with `tfrs.tasks.Retrieval`, as in TensorFlow Recommenders.

Begin reading here. Every example is a row and a column of the score matrix: its query should score
its item above the items of the other examples. `RetrievalTask` (`task.py`) computes each distinct
query and item once, gives the same loss and the same gradients, and can do more:

| what                                        | `tfrs.tasks.Retrieval`            |
|---------------------------------------------|-----------------------------------|
| in-batch negatives, any of `losses.LOSSES`  | yes, by `RetrievalLoss`           |
| temperature                                 | yes, fixed                        |
| `log_q` (`corrections.py`)                  | `candidate_sampling_probability`  |
| known positives of the user masked          | `score_mask`                      |
| accidental hits masked                      | `candidate_ids`                   |
| `log_q_masked` (`corrections.py`)           | no: it also corrects s+           |
| `num_hardest`: the hardest negatives alone  | `num_hard_negatives`, with copies |
| uniform, popularity and memory negatives    | yes, as further candidates        |
| the catalogue, mined negatives, impressions | no                                |

s+ is the score of the positive. Copies are the further columns of an item that occurs several times
in the batch.
"""

from collections.abc import Mapping

from twotower.objective.corrections import MASKED
from twotower.objective.losses import LOSSES
from twotower.tf import tf, tfrs


class PlainTwoTowerModel(tfrs.Model):
    """Two towers under `tfrs.tasks.Retrieval`, with FactorizedTopK in validation.

    Args:
        query_tower: Inputs of a batch -> `[batch_size, dim]`.
        item_tower: Inputs of a batch -> `[batch_size, dim]`.
        task: `tfrs.tasks.Retrieval(...)`.

    A batch is a pair `(query inputs, item inputs)`, each a dictionary name -> `[batch_size, ...]`.

    Example:
        model = PlainTwoTowerModel(query_tower, item_tower, tfrs.tasks.Retrieval(temperature=0.1))
        model.compile(optimizer=tf.keras.optimizers.Adam(1e-3))
        model.fit(batches, epochs=3)
    """

    def __init__(
        self,
        query_tower: tf.keras.layers.Layer,
        item_tower: tf.keras.layers.Layer,
        task: tfrs.tasks.Retrieval,
    ) -> None:
        super().__init__()
        self.query_tower, self.item_tower, self.task = query_tower, item_tower, task

    def compute_loss(
        self,
        inputs: tuple[Mapping[str, tf.Tensor], Mapping[str, tf.Tensor]],
        training: bool = False,
    ) -> tf.Tensor:
        """The task's loss, a scalar; in validation also updates FactorizedTopK."""
        queries = self.query_tower(inputs[0], training=training)  # [batch_size, dim]
        items = self.item_tower(inputs[1], training=training)  # [batch_size, dim]
        return self.task(queries, items, compute_metrics=not training)


@tf.keras.saving.register_keras_serializable("twotower")
class RetrievalLoss(tf.keras.losses.Loss):
    """Any of `LOSSES` as the loss of `tfrs.tasks.Retrieval`.

    The task passes scores `[num_examples, num_candidates]` and a one-hot label for each row. It has
    divided the scores by the temperature, corrected them by log-Q, and added a large negative
    number to masked columns and accidental hits. Columns with such a score are not negatives.

    Args:
        name: One of `LOSSES`.
        reduction: Keras' reduction. The default is the mean, so that the learning rate need not
            change with the batch size.
        **parameters: Keyword arguments of the loss function, such as `margin`.

    >>> loss = RetrievalLoss("triplet", margin=0.5, mining="hardest")
    >>> scores = tf.constant([[0.9, 0.6], [0.1, 0.9]])
    >>> round(float(loss(tf.eye(2), scores)), 4)  # (.2 + 0) / 2
    0.1
    """

    def __init__(
        self,
        name: str = "softmax",
        reduction: str = tf.keras.losses.Reduction.SUM_OVER_BATCH_SIZE,
        **parameters: float | str,
    ) -> None:
        if name not in LOSSES:
            raise ValueError(f"the loss must be one of {[*LOSSES]}; got {name!r}.")
        super().__init__(reduction=reduction, name=name)
        self.parameters = parameters

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Loss of each row, `[num_examples]`, from labels and scores
        `[num_examples, num_candidates]`."""
        is_label = y_true > 0.5
        positive = tf.reduce_sum(tf.where(is_label, y_pred, 0.0), 1)
        is_masked = is_label | (y_pred < MASKED / 2)
        log_weight = tf.where(is_masked, MASKED, 0.0)
        negatives = tf.where(is_masked, 0.0, y_pred)
        return LOSSES[self.name](positive, negatives, log_weight, **self.parameters)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {"reduction": self.reduction, "name": self.name, **self.parameters}
