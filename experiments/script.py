"""Settings and path flags of the scripts, which import this module before TensorFlow."""

import logging as python_logging
import os
import sys
import warnings
from collections.abc import Callable

# TensorFlow's notes about absent GPUs would drown the output of a script. TensorFlow reads this
# when it is first imported, for the whole process, so scripts set it and the package does not.
# With TF_CPP_MIN_LOG_LEVEL=0 in the environment the notes are shown.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags, logging

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


class _Plain(python_logging.Formatter):
    """The message alone; in front of it `warning: ` or `error: `, if it is one."""

    def format(self, record: python_logging.LogRecord) -> str:
        level = record.levelname.lower()
        return f"{level}: {record.getMessage()}" if level != "info" else record.getMessage()


def show_messages() -> None:
    """Shows the project's messages as plain lines, and of TensorFlow's its warnings alone."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(_Plain())
    # TensorFlow logs every file of a SavedModel here, too.
    handler.addFilter(lambda record: "tensorflow" not in record.pathname)
    python_logging.getLogger("tensorflow").setLevel("WARNING")
    # Without the line of code that warns.
    warnings.showwarning = lambda message, *_, **__: logging.warning("%s", message)


def hide_notes() -> None:
    """Hides what C++ libraries write to standard error, as ScaNN does when it builds an index.

    It cannot be configured. What Python writes still shows; with TF_CPP_MIN_LOG_LEVEL under 3 in
    the environment everything does, such as the reason of a crash.
    """
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] < "3":
        return
    sys.stderr.flush()
    shown = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    tensorflow = python_logging.getLogger("tensorflow")
    for handler in (logging.get_absl_handler().python_handler, *tensorflow.handlers):
        handler.setStream(shown)
    sys.stderr = shown


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a script's `main`. Ctrl-C ends it with one line and the status 130, as in a shell."""
    hide_notes()
    try:
        app.run(main)
    except KeyboardInterrupt as interrupt:
        print(f"\n{interrupt or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
