"""Two-tower retrieval on TensorFlow Recommenders.

TensorFlow Recommenders is written for Keras 2. TensorFlow 2.16 and later hand out Keras 3 unless
`TF_USE_LEGACY_KERAS=1` stands in the environment when TensorFlow is first imported (ScaNN imports
TensorFlow too). So this package sets it, which works when `twotower` is imported first.
"""

import os
import sys

__version__ = "0.1.0"

_LEGACY = ("1", "true", "True")

# Whether TensorFlow was loaded with Keras 3 before this package had a say.
_TOO_LATE = "tensorflow" in sys.modules and os.environ.get("TF_USE_LEGACY_KERAS") not in _LEGACY

if not _TOO_LATE:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"


def require_legacy_keras() -> None:
    """Raises ImportError where TensorFlow has already been imported with Keras 3.

    Called by the modules that build Keras layers. Metrics, retrieval and evaluation do without
    TensorFlow, so they work even then.
    """
    if _TOO_LATE:
        raise ImportError(
            "TensorFlow was imported with Keras 3 before twotower, and tensorflow-recommenders "
            "needs Keras 2. Import twotower first, or start Python with TF_USE_LEGACY_KERAS=1."
        )
