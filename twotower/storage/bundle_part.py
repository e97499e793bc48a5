"""Reads the parts of a bundle that have a folder each: indexes, funnels, rankers, a map.

A part belongs to one training. Its description has the version of the model, and the sha256 of
every file.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from twotower.storage import description, paths

T = TypeVar("T")


def described(
    directory: pathlib.Path, name: str, what: str, entries: Mapping[str, type], version: int
) -> dict:
    """The entries of a part's description; no other file is read.

    Args:
        directory: The part's folder.
        name: Name of the description in it.
        what: The part's kind, for messages: "a map".
        entries: Type of each entry that must be there, besides `format_version`.
        version: The `format_version` that the caller reads.

    Raises:
        ValueError: No such file, a description of something else, changed, or of another format.
    """
    path = directory / name
    try:
        return description.read(path, what, entries, version)
    except FileNotFoundError as error:
        kind = what.split()[-1]
        raise ValueError(f"{path} does not exist, so {directory} holds no {kind}.") from error


def load(
    directory: str | pathlib.Path,
    name: str,
    what: str,
    entries: Mapping[str, type],
    version: int,
    model_version: str,
    make: Callable[[pathlib.Path, dict], T],
) -> T:
    """What `make(directory, entries)` reads, from files that are those of the description.

    Args:
        directory: As in `described`, and so are `name`, `what`, `entries` and `version`.
        model_version: Version of the bundle. A part that was saved with another is refused.
        make: Reads the part. It is called once more if the folder is replaced meanwhile.

    Raises:
        ValueError: As `described`; a part of another model; a file that is missing, changed or not
            listed; or entries that `make` cannot make a part of.
    """
    directory = paths.local(directory)

    def read() -> T:
        found = described(directory, name, what, entries, version)
        if found["model_version"] != model_version:
            raise ValueError(
                f"{directory / name}: the {what.split()[-1]} was made for model "
                f"{found['model_version']!r}, not for {model_version!r}. Make one for this "
                "bundle."
            )
        with description.checked(directory, found["files"]):
            description.require_no_more(directory, [*found["files"], name])
            try:
                return make(directory, found)
            except (ArithmeticError, LookupError, MemoryError, TypeError) as error:
                raise ValueError(
                    f"{directory / name}: its parts do not fit together: {error}"
                ) from error

    return description.consistently(directory, read)
