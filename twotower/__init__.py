"""Two-tower retrieval on TensorFlow Recommenders.

The import sets `TF_USE_LEGACY_KERAS=1`, which TensorFlow reads when it is first imported (`tf.py`
says why). TensorFlow itself is imported by the modules that build layers; data, metrics, retrieval
and evaluation do without.
"""

import os
import sys

__version__ = "0.1.0"

# Whether TensorFlow was imported with Keras 3 before this package could ask for Keras 2.
TENSORFLOW_CAME_FIRST = "tensorflow" in sys.modules and os.environ.get(
    "TF_USE_LEGACY_KERAS"
) not in ("1", "true", "True")

if not TENSORFLOW_CAME_FIRST:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
