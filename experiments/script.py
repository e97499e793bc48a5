"""What the scripts share; the first import of each of them."""

import os

# TensorFlow's notes about absent GPUs drown what a script has to say. Read when TensorFlow is
# first imported, for the whole process: a choice of scripts, not of the package.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags

import twotower  # noqa: F401  (sets the Keras switch before TensorFlow loads)
from twotower import paths

# The flags are the calling script's own, so that its --help shows them.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return str(paths.local(argument))


def DEFINE_path(name: str, default: str | None, text: str, **kwargs) -> None:
    """A flag of a file or folder: `~` is expanded, and an address such as gs:// is refused."""
    flags.DEFINE(_PathParser(), name, default, text, **kwargs)
