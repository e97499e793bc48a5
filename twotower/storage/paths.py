"""Paths of this machine: `~` expanded, addresses refused, and names that can be read back."""

import os
import pathlib
import re

# TensorFlow looks for a checkpoint by a pattern: it reads `runs[1]` as the folder `runs1`, and
# finds nothing in a folder with a backslash.
PATTERN_CHARACTERS = "*?[\\"


def local(path: str | os.PathLike) -> pathlib.Path:
    """The path, with `~` as the home of its user.

    Raises:
        ValueError: An empty path, a home that is not there, or an address such as `gs://bucket`,
            which would become a folder of that name.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError("an empty path; give a file or a folder.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(
            f"{text!r} is an address, and only paths of this machine are read and written. Mount "
            "it and give its path, or copy what is there."
        )
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"{text!r}: no such user. A folder of that name is ./{text}.")
    return pathlib.Path(expanded)


def encodable(path: str | os.PathLike) -> pathlib.Path:
    """`local`, for a folder that libraries of C++ write into or read from.

    Raises:
        ValueError: As in `local`; or a name that is not valid UTF-8.
    """
    path = local(path)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{str(path)!r} is not valid UTF-8, as TensorFlow, FAISS and ScaNN need. Rename it, or "
            "take another folder."
        ) from error
    return path


def literal(path: str | os.PathLike) -> pathlib.Path:
    """`local`, for a folder that TensorFlow writes into or reads from.

    Raises:
        ValueError: As in `local`; or a name that TensorFlow writes and does not find again.
    """
    path = encodable(path)
    if odd := sorted(set(PATTERN_CHARACTERS) & set(str(path))):
        raise ValueError(
            f"{str(path)!r} has {' '.join(odd)} in its name, which TensorFlow takes for a pattern: "
            "it would write there and not find it again. Take another folder, or rename it."
        )
    return path


def is_plain_name(name: str) -> bool:
    """Whether this is a name without a path, for a folder directly in another one.

    A leading dot is refused, since it marks unfinished writes.

    >>> [is_plain_name(name) for name in ("hnsw", "", "a/b", "..", ".hnsw")]
    [True, False, False, False, False]
    """
    return name != "" and pathlib.PurePath(name).name == name and not name.startswith(".")


def require_plain_name(name: str, what: str, such_as: str = "'default'") -> None:
    """Raises ValueError for a name that is not plain.

    Args:
        name: Name of an index, a funnel or a ranker.
        what: Which of these, for the message: "a funnel".
        such_as: Names that it could have, for the message.
    """
    if not is_plain_name(name):
        raise ValueError(f"{what} has one plain name, such as {such_as}; got {name!r}.")
