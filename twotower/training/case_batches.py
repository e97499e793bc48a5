"""Batches of evaluation cases, for the validation loss and FactorizedTopK in Keras' `fit`."""

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.inputs import QueryInputs
from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.training.batch import Batch, no_columns, tensors


def case_batches(
    cases: EvalCases, query_inputs: QueryInputs, probability: np.ndarray, batch_size: int
) -> tf.data.Dataset:
    """Batches in which a row is a case, in the order of the cases.

    The items to find are the case's targets, each with weight 1. Known positives are the items of
    the history and all targets.

    Args:
        cases: The queries and their targets; there may be none.
        query_inputs: Makes the query tower's inputs from cases.
        probability: `[num_items]`, p_c of each item.
        batch_size: Cases of a batch; the last one may be short.
    """
    starts = range(0, len(cases), batch_size)
    parts = [cases.take(np.arange(i, min(i + batch_size, len(cases)))) for i in starts]
    made = [_fields(part, query_inputs, probability) for part in parts]
    signature = _fields(cases.take(np.arange(0)), query_inputs, probability)
    signature = tf.nest.map_structure(_any_length, signature)
    batches = tf.data.Dataset.from_generator(lambda: iter(made), output_signature=signature)

    def whole(fields: dict) -> Batch:
        # Not made by the generator: the signature would hide that they have no columns.
        names = ("position", "num_earlier", "hard_negatives")
        return Batch(**fields, **dict.fromkeys(names, no_columns(fields["item"])))

    return batches.map(whole)


def _fields(cases: EvalCases, query_inputs: QueryInputs, probability: np.ndarray) -> dict:
    """The fields of a `Batch` of cases that are not empty."""
    targets = cases.targets
    item = tf.constant(targets.to_dense(-1), tf.int32)
    known = Ragged.group(
        np.concatenate([cases.history.values, targets.values]),
        np.concatenate([cases.history.row_index, targets.row_index]),
        len(cases),
    )
    return {
        "query": tensors(query_inputs(cases)),
        "item": item,
        "weight": tf.ones_like(item, tf.float32),
        "probability": tf.gather(probability, tf.maximum(item, 0)),
        "known_positives": tf.RaggedTensor.from_row_splits(
            known.values.astype(np.int32), known.offsets
        ),
        "item_inputs": {},
    }


def _any_length(values: tf.Tensor | tf.RaggedTensor) -> tf.TypeSpec:
    """The type of `values` with dimensions of any length."""
    if isinstance(values, tf.RaggedTensor):
        return tf.RaggedTensorSpec([None, None], values.dtype)
    return tf.TensorSpec([None] * values.shape.rank, values.dtype)
