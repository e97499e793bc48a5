"""Signatures: of loaded SavedModels, as functions that cost little besides their operations."""

from collections.abc import Callable
from typing import Any


def direct(signature: Any) -> Callable[[dict], dict]:
    """A loaded signature as a function of its input tensors by name, by one op.

    `signature(**inputs)` has Python look at each input, output and weight: a third of the time of
    a session's event. The op checks the inputs' types itself. Operations run one after another:
    for many small ones a queue of those that are ready costs more than it gives.
    """
    import tensorflow as tf

    weights = signature.captured_inputs
    names = [tensor.name.removesuffix(":0") for tensor in signature.inputs]
    names = names[: len(names) - len(weights)]
    answers = sorted(signature.structured_outputs)  # the order in which they come
    types = [signature.structured_outputs[name].dtype for name in answers]
    config = tf.compat.v1.ConfigProto()
    config.experimental.executor_type = "SINGLE_THREADED_EXECUTOR"
    config = config.SerializeToString()

    def call(inputs: dict) -> dict:
        args = [inputs[name] for name in names] + weights
        found = tf.raw_ops.StatefulPartitionedCall(
            args=args, Tout=types, f=signature, config_proto=config
        )
        return dict(zip(answers, found))

    return call
