"""TensorFlow and TensorFlow Recommenders with Keras 2: for all modules that build layers.

    from twotower.tf import tf, tfrs

TensorFlow Recommenders is written for Keras 2. TensorFlow 2.16 and later hand out Keras 3 unless
`TF_USE_LEGACY_KERAS=1` stands in the environment when TensorFlow is first imported. `import
twotower` sets it, which comes too late if something else has imported TensorFlow before.
"""

import twotower

if twotower.TENSORFLOW_CAME_FIRST:
    raise ImportError(
        "TensorFlow was imported with Keras 3 before twotower, and tensorflow-recommenders "
        "needs Keras 2. Import twotower first, or start Python with TF_USE_LEGACY_KERAS=1."
    )

import tensorflow as tf
import tensorflow_recommenders as tfrs

__all__ = ["require_one_replica", "tf", "tfrs"]


def require_one_replica(what: str) -> None:
    """Raises ValueError under a distribution strategy with several replicas.

    Args:
        what: What each replica would compute from its own part of the batch alone, such as
            `batch_norm`.
    """
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if num_replicas > 1:
        raise ValueError(
            f"{what} needs one replica; the strategy has {num_replicas}. Train without {what}."
        )
