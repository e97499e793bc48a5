"""In-batch columns for items with features that depend on the time, such as the item's age.

Two examples of one item then have different vectors, so each example is a column. The columns must
come from the batch. A drawn negative would have its age as of the end of training, and the model
could tell it from a positive by its age alone.
"""

import numpy as np

from twotower.objective.corrections import column_log_weight
from twotower.objective.negatives import (
    Columns,
    Encode,
    Negatives,
    NegativesConfig,
    Targets,
    of_all_replicas,
)
from twotower.tf import tf


class TimeDependentNegatives(Negatives):
    """`Negatives` of the batch, with a column for each example.

    Args:
        config: As in `Negatives`.
        probability: As in `Negatives`.
        dim: Length of the vectors.

    Raises:
        ValueError: Other negatives than those of the batch.

    Two examples of item 1, at different ages, are two columns:

    >>> negatives = TimeDependentNegatives(NegativesConfig(), [0.5, 0.5], dim=1)
    >>> none, ages = tf.zeros([2, 0], tf.int32), {"age": tf.constant([0.0, 30.0])}
    >>> examples = Targets(tf.range(2), tf.constant([1, 1]), tf.ones(2), tf.ones(2), ages, none)
    >>> columns, _ = negatives(examples, lambda keys, inputs: inputs["age"][:, None], "none")
    >>> columns.keys.numpy().tolist(), columns.vectors.numpy().tolist()
    ([1, 1], [[0.0], [30.0]])
    """

    def __init__(self, config: NegativesConfig, probability: np.ndarray, dim: int) -> None:
        super().__init__(config, probability, dim)
        if config.negatives != ("batch",) or config.has_hard_negatives:
            raise ValueError(
                "time-dependent item features (age, popularity) need the time of an example, which "
                "only the columns of the batch have. Other columns would have the features as of "
                "the end of training, and the model could tell by that alone that they are "
                "negatives. Leave the features out, or take negatives=('batch',); got "
                f"{config}."
            )

    def __call__(
        self, targets: Targets, encode: Encode, correction: str, training: bool = False
    ) -> tuple[Columns, tf.Tensor]:
        positives = encode(targets.item, targets.inputs)  # [num_examples, dim]
        keys, vectors = of_all_replicas(targets.item), positives
        if keys is not targets.item:
            inputs = {name: of_all_replicas(values) for name, values in targets.inputs.items()}
            vectors = encode(keys, inputs)
        probability = of_all_replicas(targets.probability)
        weight = column_log_weight(tf.ones_like(keys), probability, tf.size(keys) - 1, correction)
        return Columns(keys, weight, vectors), positives
