"""Signatures: of loaded SavedModels, as functions that cost little besides their operations."""

from collections.abc import Callable
from typing import Any


def direct(signature: Any) -> Callable[[dict], dict]:
    """A loaded signature as a function of its input tensors by name, by one op; not inside graphs.

    `signature(**inputs)` has Python look at each input, output and weight: a third of the time of
    a session's event. The op checks the inputs' types itself. Operations run one after another:
    for many small ones a queue of those that are ready costs more than it gives.

    The function is executed directly, as an op of its name, which TensorFlow frees with the model.
    `tf.raw_ops.StatefulPartitionedCall`, an op that calls the function, would keep some MiB of
    every model that was ever loaded.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context, execute

    weights = signature.captured_inputs
    # The graph has the name of an argument in small letters, and its spec has that of the graph.
    arguments = {spec.name: name for name, spec in signature.structured_input_signature[1].items()}
    tensors = signature.inputs[: len(signature.inputs) - len(weights)]
    names = [arguments[tensor.name.removesuffix(":0")] for tensor in tensors]
    answers = sorted(signature.structured_outputs)  # the order in which they come
    config = tf.compat.v1.ConfigProto()
    # The op has an attribute for this, too, by which it hangs if TensorFlow has one thread.
    config.experimental.executor_type = "SINGLE_THREADED_EXECUTOR"
    attributes = ("executor_type", "", "config_proto", config.SerializeToString())
    function, state = tf.compat.as_str(signature.name), context.context()

    def call(inputs: dict) -> dict:
        args = [inputs[name] for name in names] + weights
        found = execute.execute(function, len(answers), args, attributes, state)
        return dict(zip(answers, found))

    called: Any = call
    called.signature = signature  # the function ends with it
    return called
