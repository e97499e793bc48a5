"""What all commands and scripts share: path flags, a help text in groups, errors in one line.

Scripts import this module before TensorFlow.
"""

import logging as python_logging
import os
import signal
import subprocess
import sys
import textwrap
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

# TensorFlow's notes about absent GPUs would drown the output of a script. TensorFlow reads this
# when it is first imported, for the whole process, so scripts set it and the package does not.
# With TF_CPP_MIN_LOG_LEVEL=0 in the environment the notes are shown.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags, logging

from twotower.commands import extras
from twotower.storage import paths

# Flags that are defined through this module count as the calling script's, so its --help shows
# them.
flags.disclaim_key_flags()

HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort")
EVERYWHERE = {
    "flagfile": "A file with further flags, one a line.",
    "verbosity": "0 shows what happens, -1 warnings alone.",
    "debug": "Show where in the code an error comes from.",
}


def _show_error(kind: Any, error: BaseException, trace: Any) -> None:
    """A module that a script lacks is one line, even where it is imported before `run`."""
    if isinstance(error, ModuleNotFoundError) and "--debug" not in sys.argv:
        name = os.path.basename(sys.argv[0])
        print(f"{name}: {extras.advice(error)} (--debug shows where.)", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _show_error


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return str(paths.local(argument))


def DEFINE_path(name: str, default: str | None, text: str, **kwargs: Any) -> None:
    """Defines a flag for a file or folder. `~` is expanded; an address such as gs:// is refused."""
    flags.DEFINE(_PathParser(), name, default, text, **kwargs)


def DEFINE_paths(name: str, text: str, **kwargs: Any) -> None:
    """Defines a flag for one or more files or folders; it is given once for each."""
    serializer: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    flags.DEFINE_multi(_PathParser(), serializer, name, None, text, **kwargs)


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
        if isinstance(handler, python_logging.StreamHandler):
            handler.setStream(shown)
    sys.stderr = shown


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main`, with the flags that the script's file defines.

    Help, errors and messages are those of the commands (`run_command`).

        if __name__ == "__main__":
            script.run(main)
    """
    module = sys.modules[main.__module__]
    # absl knows the flags of the script that Python was started with by its path.
    key = sys.argv[0] if module.__name__ == "__main__" else module.__name__
    defined = [flag.name for flag in flags.FLAGS.flags_by_module_dict().get(key, ())]
    _run(main, [os.path.basename(sys.argv[0]), *sys.argv[1:]], module.__doc__, {"Flags": defined})


def run_command(command: types.ModuleType, argv: Sequence[str]) -> None:
    """Parses flags, then calls `command.main()`.

    `--help` prints the module's docstring and its flags: those that `command.FIRST` names, then the
    rest, and groups of further ones if there are any. An error that the user can correct ends in
    one line on standard error and status 1. Ctrl-C ends in one line and status 130, as in a shell.

    Args:
        command: A module with `main`, `FIRST`, and `define_flags`, which may return the groups,
            title -> names.
        argv: How the command is called, such as `twotower train`, and its arguments.
    """
    others = command.define_flags() or {}
    defined = [flag.name for flag in flags.FLAGS.flags_by_module_dict()[command.__name__]]
    grouped = {*command.FIRST, *(flag for names in others.values() for flag in names)}
    groups = {
        "First of all": list(command.FIRST),
        "Further": [flag for flag in defined if flag not in grouped],
        **{
            title: [flag for flag in names if flag not in command.FIRST]
            for title, names in others.items()
        },
    }
    _run(command.main, argv, command.__doc__, groups)


def _run(
    main: Callable[[], None], argv: Sequence[str], doc: str | None, groups: dict[str, list[str]]
) -> None:
    """Prints the help text, or parses the flags and calls `main`."""
    name, *arguments = argv
    flags.DEFINE_bool("debug", False, EVERYWHERE["debug"])
    if set(arguments) & {*HELP}:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
        print(help_text(name, doc, groups))
        return
    debug = True  # for errors before the flags are known, which name themselves
    try:
        _, *rest = flags.FLAGS([name, *arguments])
        debug = flags.FLAGS.debug
        if rest:
            raise flags.Error(f"unknown arguments {rest}; every flag starts with --.")
        verbosity = flags.FLAGS["verbosity"]
        logging.use_absl_handler()
        show_messages()
        if not verbosity.using_default_value:
            logging.set_verbosity(int(flags.FLAGS.verbosity))
        hide_notes()
        main()
    except (flags.Error, app.UsageError) as error:
        text = " ".join(str(error).split()).rstrip(" .?")
        sys.exit(f"{name}: {text}{'?' if 'Did you mean' in text else '.'} Try {name} --help.")
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        if debug:
            raise
        words = [error.cmd] if isinstance(error.cmd, str) else [*map(str, error.cmd)]
        started = next((word for word in words if word.endswith(".py")), words[0])
        how = f"ended with status {error.returncode}; it said why above"
        if error.returncode < 0:  # such as for want of memory, and it said nothing
            how = f"was ended by the signal {signal.Signals(-error.returncode).name}"
        sys.exit(f"{name}: {os.path.basename(started)} {how}.")
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        text = extras.advice(error) if isinstance(error, ImportError) else error
        sys.exit(f"{name}: {text} (--debug shows where.)")


def help_text(name: str, doc: str | None, groups: dict[str, list[str]]) -> str:
    """What `--help` prints: the docstring, then the flags of each group with their defaults."""
    lines = [f"{name}: {(doc or '').strip()}"]
    for title, names in groups.items():
        if names:
            lines += ["", f"{title}:", *(_described(flags.FLAGS[flag]) for flag in names)]
    lines += ["", "With every command:"]
    lines += [f"  --{flag}: {text}" for flag, text in EVERYWHERE.items()]
    return "\n".join(lines)


def _described(flag: flags.Flag) -> str:
    """One flag: name, text and default."""
    negative = "[no]" if flag.boolean else ""
    default = "" if flag.default in (None, "", []) else f" ({flag.default_as_str})".replace("'", "")
    about = flag.help.partition(";    ")[0]  # after it, absl explains flags that can be repeated
    text = f"--{negative}{flag.name}: {about}{default}"
    return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="      ")
