"""A file with one byte changed."""

import pathlib


def flip(path: pathlib.Path) -> None:
    """Changes one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
