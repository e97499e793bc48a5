"""Replaces a folder by another one of its kind, whole or not at all, and never any other folder."""

import contextlib
import ctypes
import errno
import fcntl
import glob
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from twotower.storage import paths

# What a folder is, by the file that describes it.
KINDS = {
    "manifest.json": "a bundle",
    "live.json": "a snapshot",
    "index.json": "an index",
    "funnel.json": "a funnel",
    "ranker.json": "a ranker",
    "map.json": "a map",
}
# Descriptions of what is inside a snapshot and inside a bundle.
INSIDE = {
    "live.json": ("index/index.json",),
    "manifest.json": (
        "index/*/index.json", "funnels/*/funnel.json", "rankers/*/ranker.json", "map/map.json",
    ),
}  # fmt: skip
LOCK, NEW, OLD = "lock", "new", "old"
TOKEN = "[a-z0-9_]{8}"  # of tempfile.mkdtemp
OCCUPIED = errno.ENOTEMPTY, errno.EEXIST


@contextlib.contextmanager
def replacing(directory: str | pathlib.Path, description: str) -> Iterator[pathlib.Path]:
    """A new folder that replaces `directory` if the `with` statement ends without an error.

    `directory` may be missing, empty, or a folder of the same kind that holds no other file: an
    index replaces an index, and never the bundle around it. This is checked before the statement
    and again after it. A link is followed.

    On Linux the two folders are exchanged in one step, so even `kill -9` leaves either the old or
    the new one in place. Elsewhere the next call undoes half an exchange. Several writers of one
    folder do not disturb each other: the folder of the last to end stays. The next call removes
    what a killed writer left beside the folder.

    Args:
        directory: The folder; `~` is expanded.
        description: File that describes folders of the new one's kind, one of `KINDS`.

    Raises:
        ValueError: A folder that may not or cannot be replaced, or an address. If that shows only
            afterwards, the message names the finished folder, which stays.
    """
    directory = pathlib.Path(os.path.realpath(paths.encodable(directory)))
    require_replaceable(directory, description)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(directory) as new:
        _require_movable(directory, new.parent)
        yield new
        try:
            require_replaceable(directory, description)
            _put(new, directory)
        except (OSError, ValueError) as error:
            token = new.parent.name.rpartition("-")[2]
            finished = directory.with_name(f"{directory.name}.finished-{token}")
            os.rename(new, finished)
            raise ValueError(f"{error} What was written is whole, in {finished}.") from error


def require_replaceable(directory: pathlib.Path, description: str) -> None:
    """Raises ValueError for a folder that holds anything but one of the described kind."""
    for is_last in (False, False, True):
        try:
            return _require_ours(directory, description)
        except (OSError, ValueError):  # another writer may have exchanged it meanwhile
            if is_last:
                raise


def _require_ours(directory: pathlib.Path, description: str) -> None:
    if not os.path.lexists(directory):
        return
    if not directory.is_dir():
        raise ValueError(f"{directory} is no folder, so it is not replaced. Give a folder.")
    if os.path.samefile(directory, "."):
        raise ValueError(
            f"{directory} is the working directory, so it is not replaced. Give a folder in it."
        )
    inside = INSIDE.get(description, ())
    names = (description, *inside)
    known = set().union(*(_known(path) for name in names for path in directory.glob(name)))
    is_ours = directory / description in known
    # Folders that may hold an empty one: TensorFlow writes `assets` without a file.
    folders = {folder for path in known for folder in path.parents} - {directory}
    parts = {directory / name.split("/")[0] for name in inside}
    for path in _contents(directory):
        is_folder = path.is_dir() and not path.is_symlink()  # then it is empty
        may_be_empty = path in parts or path.parent in folders
        if not is_ours or not (path in known or (is_folder and may_be_empty)):
            raise ValueError(
                f"{directory} holds {path.relative_to(directory)}, which is no part of "
                f"{KINDS[description]}, so it is not replaced by {KINDS[description]}. Give "
                "another folder, or move that away."
            )


def _known(path: pathlib.Path) -> set[pathlib.Path]:
    """A description and the files that it lists; empty for somebody else's file of that name."""
    try:
        described = json.loads(path.read_text())
        is_ours = "model_version" in described or "sequence" in described
        if is_ours and type(described["format_version"]) is int:
            return {path, *(path.parent / name for name in described.get("files", ()))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return set()


def _contents(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Files, links and empty folders below a folder, but for what killed writers left among its
    indexes, funnels and rankers, and beside its map."""

    def fail(error: OSError):
        raise error

    for root, folders, names in os.walk(directory, onerror=fail):
        root = pathlib.Path(root)
        if not names and not folders and root != directory:
            yield root
        for name in [*names, *(name for name in folders if (root / name).is_symlink())]:
            yield root / name
        if root in [directory / part for part in ("", "index", "funnels", "rankers")]:
            folders[:] = [name for name in folders if not _is_temporary(root / name)]


def _is_temporary(path: pathlib.Path) -> bool:
    """Whether a folder is one that `unfinished` made, by its name and by what it holds."""
    if not re.fullmatch(rf"\..+\.partial-{TOKEN}", path.name):
        return False
    try:
        return {*os.listdir(path)} <= {LOCK, NEW, OLD}
    except FileNotFoundError:
        return True  # its writer has ended meanwhile
    except OSError:
        return False


def _clean(directory: pathlib.Path) -> None:
    """Removes what killed writers of a folder left beside it; a lock marks those still at work."""
    for left in directory.parent.glob(glob.escape(_prefix(directory)) + "*"):
        if not _is_temporary(left):
            continue
        with contextlib.suppress(OSError), open(left / LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (left / OLD).exists() and not directory.exists():
                os.rename(left / OLD, directory)  # killed between its two renames
            shutil.rmtree(left, ignore_errors=True)


def _prefix(directory: pathlib.Path) -> str:
    return f".{directory.name}.partial-"


@contextlib.contextmanager
def unfinished(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new, empty folder on the file system of `directory`, removed in the end with what is left
    in it.

    Before it is made, those that killed processes left for the same `directory` are removed. A lock
    keeps them off the ones that are in use.

    Args:
        directory: Whose parent gets the folder, in a hidden one. It need not exist.
    """
    _clean(directory)
    with contextlib.ExitStack() as stack:
        while True:
            made = tempfile.mkdtemp(prefix=_prefix(directory), dir=directory.parent)
            temporary = pathlib.Path(made)
            try:
                lock = stack.enter_context(open(temporary / LOCK, "w"))
            except FileNotFoundError:
                continue  # it was taken for a leftover before it was locked
            with contextlib.suppress(OSError):  # without locks, leftovers stay where they are
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (temporary / LOCK).exists():
                break
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        new = temporary / NEW
        new.mkdir()
        yield new


def _require_movable(directory: pathlib.Path, occupied: pathlib.Path) -> None:
    """Raises ValueError for a folder that cannot be moved: a mount point, or one in a lower layer
    of an overlay. Moving it onto a folder that is not empty always fails; the error tells why."""
    if not directory.exists():
        return
    try:
        os.rename(directory, occupied)
    except OSError as error:
        if error.errno not in OCCUPIED:
            raise ValueError(
                f"{directory} cannot be moved ({error.strerror}), as a mount point or a folder of "
                "a container's image cannot, so it is not replaced. Give a folder inside it."
            ) from error


def _put(new: pathlib.Path, directory: pathlib.Path) -> None:
    """Moves `new` to `directory`. A folder that was there ends at `new`, or beside it as `old`."""
    while True:
        try:
            os.rename(new, directory)  # onto nothing, or onto an empty folder
            return
        except OSError as error:
            if error.errno not in OCCUPIED:
                raise
        if _exchange(new, directory):
            return
        old = new.with_name(OLD)
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another writer was quicker
            os.rename(directory, old)


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Swaps two folders in one step; False where the system cannot. Python has no call for it."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
    return renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
