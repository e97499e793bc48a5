"""Description of a folder: a JSON file with the sha256 of every other file, and of itself.

Bundles, saved indexes and snapshots are such folders. Their readers notice a file that is missing,
truncated, or of another training. The hashes guard against accidents, such as half a copy or a
flipped bit. They are no signature: whoever can write to the folder can also write the hashes.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from twotower.limits import require_int64

T = TypeVar("T")


def hashes(directory: pathlib.Path) -> dict[str, str]:
    """sha256 of every file below a folder, by the file's path in that folder."""
    return {
        path.relative_to(directory).as_posix(): _sha256(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: pathlib.Path, entries: Mapping) -> None:
    """Writes a description; `entries["files"]` are what `hashes` gives."""
    path.write_text(_text(entries))


def _text(entries: Mapping) -> str:
    """JSON of the entries, and last their sha256, which replaces an earlier one."""
    entries = {name: value for name, value in entries.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(entries, indent=1).encode()).hexdigest()
    return json.dumps({**entries, "sha256": digest}, indent=1) + "\n"


def read(path: pathlib.Path, what: str, entries: Mapping[str, type], version: int) -> dict:
    """The entries of a description, `sha256` among them; no other file is read.

    Args:
        path: What `write` wrote.
        what: The folder's kind, for messages: "an index".
        entries: Type of each entry that must be there, besides `format_version`.
        version: The `format_version` that the caller reads.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A description of something else, changed, or of another format.
    """
    try:
        text = path.read_bytes().decode()
        if not text:
            raise ValueError("it is empty, as in the middle of a copy over it")
        described = json.loads(text, parse_int=_int64)
        if type(described) is not dict or type(described.get("format_version")) is not int:
            raise ValueError("it has no format_version")
        digest, found = described.pop("sha256", None), described["format_version"]
        if found == version:
            if text != _text(described):
                raise ValueError("it is truncated or changed (its sha256 differs)")
            _require(described, entries)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not describe {what}: {error}.") from error
    if found != version:
        age, remedy = ("newer", "Update twotower, or") if found > version else ("older", "Please")
        raise ValueError(
            f"{path}: format {found} is {age} than this code reads ({version}). {remedy} write the "
            "folder again with this version."
        )
    return described | {"sha256": digest}


def _int64(digits: str) -> int:
    """An integer of a description. One beyond int64 would fail later, in an array.

    Raises:
        ValueError: The integer does not fit an int64.
    """
    require_int64(int(digits), "an integer")
    return int(digits)


def _require(described: dict, entries: Mapping[str, type]) -> None:
    """Raises ValueError for an entry that is missing or of another type, and for files that are
    no plain paths with a sha256."""
    for name, kind in entries.items():
        if type(described.get(name)) is not kind:
            raise ValueError(f"{name} must be {kind.__name__}; got {described.get(name)!r}")
    for name, digest in described.get("files", {}).items():
        path = pathlib.PurePosixPath(name)
        is_inside = path.parts and not path.is_absolute() and ".." not in path.parts
        if not is_inside or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise ValueError(f"files must name a sha256 for each path; got {name!r}: {digest!r}")


@contextlib.contextmanager
def checked(
    directory: pathlib.Path, files: Mapping[str, str], verify: bool = True
) -> Iterator[None]:
    """A context in which listed files can be read, and must not change meanwhile.

    With `verify` they are hashed first, so what is read is what was hashed.

    Args:
        directory: The folder.
        files: sha256 by path, from its description.
        verify: Whether to hash the files; if not, they only have to exist.

    Raises:
        ValueError: A file that is missing, has another sha256, or was changed meanwhile.
    """
    before = {}
    for name, digest in files.items():
        path = directory / name
        before[name] = _identity(path)
        if not path.is_file():
            raise ValueError(f"{path} is missing.")
        if verify and _sha256(path) != digest:
            if _identity(path) != before[name]:
                raise ValueError(f"{path} was changed while it was read.")
            raise ValueError(f"{path} is truncated or changed (its sha256 differs).")
    yield
    for name, identity in before.items():
        if _identity(directory / name) != identity:
            raise ValueError(f"{directory / name} was changed while it was read.")


def require_no_more(directory: pathlib.Path, files: Iterable[str], part: str = "") -> None:
    """Refuses a folder with files that are not listed, since a library might read them, too.

    Hidden files are ignored: file managers leave them, and nothing that loads a folder reads them.

    Args:
        directory: The folder.
        files: Paths that are listed.
        part: The subfolder to check; "" for the whole folder.

    Raises:
        ValueError: A file that is not listed, or a link to a folder; the message names it.
    """
    listed = {pathlib.PurePath(name) for name in files}
    listed |= {parent for path in listed for parent in path.parents}
    for root, folders, names in os.walk(directory / part):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in [*names, *links]:
            path = pathlib.Path(root, name)
            if not name.startswith(".") and path.relative_to(directory) not in listed:
                raise ValueError(
                    f"{path} is no part of what was saved in {directory}. Was another folder "
                    "copied over it? Remove that file, or save or copy the whole folder again."
                )


def consistently(directory: pathlib.Path, read: Callable[[], T]) -> T:
    """The result of `read()`, from a folder that nobody replaces meanwhile.

    If the folder was replaced, or a description in it (`*.json`) was overwritten, `read` is called
    once more.

    Raises:
        ValueError: The folder was replaced or overwritten both times.
    """

    def identities() -> list[tuple | None]:
        return [_identity(path) for path in (directory, *sorted(directory.glob("*.json")))]

    for _ in range(2):
        before = identities()
        try:
            found = read()
        except Exception:
            if identities() == before:
                raise
        else:
            if identities() == before:
                return found
    raise ValueError(
        f"{directory} was replaced while it was read, twice. Read it again when it stays for "
        "longer than it takes to read."
    )


def _identity(path: pathlib.Path) -> tuple | None:
    """Identifies a file or folder as it is now; None if it does not exist. A folder that was moved
    away and back counts as another one, since each move changes its st_ctime."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
