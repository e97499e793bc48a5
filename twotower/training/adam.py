"""Adam by TensorFlow's fused kernel, in place of a dozen operations for each weight."""

from typing import Any

from twotower.tf import tf


def fused_step(
    optimizer: Any, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable
) -> None:
    """Updates a weight and its two moments in one pass over memory.

    Keras computes the update by a dozen operations, each of which reads and writes a whole table.
    It also does so for a gradient of a few rows, since the moments of all rows decay. Such a
    gradient is made dense here. The result is the same up to rounding.

    Args:
        optimizer: Keras' Adam or AdamW, without amsgrad.
        gradient: Of the weight: a tensor of its shape, or `tf.IndexedSlices` of some of its rows.
        variable: The weight.

    Raises:
        ValueError: Settings that the kernel does not have.

    Source: Kingma and Ba, Adam (ICLR 2015), end of section 2, with epsilon hat.
    """
    if optimizer.amsgrad or getattr(optimizer, "adaptive_epsilon", False):
        raise ValueError("the fused Adam has neither amsgrad nor adaptive_epsilon. Leave them out.")
    number = optimizer._index_dict[optimizer._var_key(variable)]
    step = tf.cast(optimizer.iterations + 1, variable.dtype)
    beta_1, beta_2, rate, epsilon = (
        tf.cast(value, variable.dtype)
        for value in (
            optimizer.beta_1,
            optimizer.beta_2,
            optimizer.learning_rate,
            optimizer.epsilon,
        )
    )
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=optimizer._momentums[number].handle,
        v=optimizer._velocities[number].handle,
        beta1_power=beta_1**step,
        beta2_power=beta_2**step,
        lr=rate,
        beta1=beta_1,
        beta2=beta_2,
        epsilon=epsilon,
        grad=tf.convert_to_tensor(gradient),
    )


@tf.keras.saving.register_keras_serializable("twotower")
class FusedAdam(tf.keras.optimizers.Adam):
    """`tf.keras.optimizers.Adam`, by `fused_step`."""

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """Updates one weight."""
        fused_step(self, gradient, variable)


@tf.keras.saving.register_keras_serializable("twotower")
class FusedAdamW(tf.keras.optimizers.AdamW):
    """`tf.keras.optimizers.AdamW`, by `fused_step`."""

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """Updates one weight; the decay was applied before."""
        fused_step(self, gradient, variable)
