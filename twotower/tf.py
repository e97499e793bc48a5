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

__all__ = ["tf", "tfrs"]
