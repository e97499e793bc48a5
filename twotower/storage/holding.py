"""Keeps a folder for one writer at a time, among all processes of this machine."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

LOCK = ".lock"


@contextlib.contextmanager
def holding(folder: pathlib.Path, writer: str) -> Iterator[None]:
    """A context in which no other one holds the same folder.

    A killed process holds nothing. On file systems without locks nothing is held.

    Args:
        folder: An existing folder; it gets a small hidden file.
        writer: What holds it, for the message: "training".

    Raises:
        ValueError: Another one holds the folder, in this process or in another.
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
