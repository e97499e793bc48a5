"""Keeps a folder for one writer at a time, among all processes of this machine."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

LOCK = ".lock"


@contextlib.contextmanager
def holding(folder: pathlib.Path, writer: str) -> Iterator[None]:
    """A context that holds a folder. No other context can hold it meanwhile, in any process.

    The lock of a killed process ends with it. On a file system without locks, this has no effect.

    Args:
        folder: An existing folder; it gets an empty hidden file.
        writer: What writes into the folder, for the message: "training".

    Raises:
        ValueError: Another context holds the folder, in this process or in another.
    """
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another {writer} is writing into {folder}. Wait until it ends, or take another "
                "folder."
            ) from error
        except OSError:
            pass
        yield
