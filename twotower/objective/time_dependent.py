"""Items whose features depend on the example's time, such as their age, as in-batch columns.

Two examples of one item differ then, so each example is a column. The columns must be the batch's:
as of the end of training, an item's age would tell a drawn negative from a positive by that alone.
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
    """`Negatives` of the batch, a column for each example.

    Args:
        config: As of `Negatives`.
        probability: As of `Negatives`.
        dim: Length of the vectors.

    Raises:
        ValueError: Other negatives than the batch's.
    """

    def __init__(self, config: NegativesConfig, probability: np.ndarray, dim: int) -> None:
        super().__init__(config, probability, dim)
        if config.negatives != ("batch",) or config.has_hard_negatives:
            raise ValueError(
                "time-dependent item features (age, popularity) are known of the batch's columns "
                "at the time of their examples. Other columns would have them as of the end of "
                "training, and be known for negatives by that alone. Leave the features out, or "
                f"take negatives=('batch',); got {config}."
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
