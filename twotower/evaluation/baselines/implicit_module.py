"""Modules of `implicit`, the library that fits iALS and item-kNN."""

import importlib
from typing import Any


def implicit_module(name: str) -> Any:
    """The module `implicit.{name}`. The library is an extra, so it is imported at a first fit.

    Raises:
        ImportError: `implicit` is not installed; the message says what to do.
    """
    try:
        return importlib.import_module(f"implicit.{name}")
    except ImportError as error:
        raise ImportError(
            'item_knn and ials need the package implicit: pip install "twotower[funnel]"'
        ) from error
