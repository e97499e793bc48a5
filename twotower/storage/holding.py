"""Keeps a folder or a file for one writer at a time, among all processes of this machine."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator

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


def held(lock: pathlib.Path) -> Callable[[], None]:
    """Makes and locks an empty file, until the function that is returned is called, which removes
    it.

    The lock of a killed process ends with it. In a folder that is read-only or without locks, this
    has no effect. A forked process has the lock, too, until it calls the function.

    Raises:
        BlockingIOError: The file is locked already, by this process or by another.
    """
    process, opened = os.getpid(), contextlib.ExitStack()
    try:
        while True:
            descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT, 0o666)
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.path.samestat(lock.stat(), os.fstat(descriptor)):
                break
            opened.close()  # its holder removed it before it let it go
    except BlockingIOError:
        opened.close()
        raise
    except OSError:
        return opened.close

    def release() -> None:
        if os.getpid() == process:
            with contextlib.suppress(OSError):  # the folder may be gone, or read-only by now
                lock.unlink()
        opened.close()

    return release
