"""Settings and path flags of the scripts, which import this module before TensorFlow."""

import os

# TensorFlow's notes about absent GPUs would drown the output of a script. TensorFlow reads this
# when it is first imported, for the whole process, so scripts set it and the package does not.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags

import twotower  # noqa: F401  (sets the Keras switch before TensorFlow loads)
from twotower.storage import paths

# Flags that are defined through this module count as the calling script's, so its --help shows
# them.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return str(paths.local(argument))


def DEFINE_path(name: str, default: str | None, text: str, **kwargs) -> None:
    """Defines a flag for a file or folder. `~` is expanded; an address such as gs:// is refused."""
    flags.DEFINE(_PathParser(), name, default, text, **kwargs)
