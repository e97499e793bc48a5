"""Columns of items that come after an export, as the catalogue and the item tower take them."""

import dataclasses
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from twotower.data.catalogue import Catalogue
from twotower.data.columns import ColumnError

# Of an input of a tower, by its dtype: what stands for a value that is not known.
MISSING = {"string": "", "float32": np.nan, "int64": -1}


@dataclasses.dataclass(frozen=True)
class ItemColumns:
    """Columns of items, a row for each.

    Attributes:
        table: The columns of a catalogue, which has no vectors.
        vectors: Name of each vector that the item tower reads -> `[num_items, length]` float32, NaN
            where an item has none.

    >>> specs = [{"name": "sound", "dtype": "float32", "shape": [None, 2]}]
    >>> items = [{"item_id": "a", "sound": [0.5, 1.0]}, {"item_id": "b", "genres": ["War"]}]
    >>> found = ItemColumns.of(items, Catalogue(pd.DataFrame({"item_id": ["c"]})), specs)
    >>> found.vectors["sound"].tolist(), found.table.columns.tolist()
    ([[0.5, 1.0], [nan, nan]], ['item_id', 'genres'])
    """

    table: pd.DataFrame
    vectors: dict[str, np.ndarray]

    @classmethod
    def of(
        cls,
        items: Sequence[Mapping[str, Any]],
        catalogue: Catalogue,
        specs: Sequence[Mapping[str, Any]],
        vector_columns: Collection[str] = (),
    ) -> "ItemColumns":
        """Columns of items as a body or a table has them.

        Args:
            items: Columns of each, `item_id` among them. Lists of texts are tags, and lists of
                numbers vectors, but for `genres` and columns that hold tags in the catalogue:
                there, as in a table, a number is a tag, too. A vector that the item tower does not
                read is left out.
            catalogue: The items that are there.
            specs: Name, dtype and shape of each input of the item tower, as in the manifest.
            vector_columns: Names of the vectors that items were added with before.

        Raises:
            ColumnError: Something else than a vector of the length that the item tower reads; or
                something else than a vector, of a name in `vector_columns`.
        """
        lengths = vector_lengths(specs)
        vectors = {
            name: _vectors(name, [item.get(name) for item in items], length)
            for name, length in lengths.items()
        }
        table = pd.DataFrame(
            [{name: item[name] for name in item if name not in lengths} for item in items]
        )
        new = [name for name in table if name != "genres" and name not in catalogue.items]
        # A column of which nothing is known is of no kind yet.
        blank = [name for name in new if all(map(is_missing, table[name]))]
        unread = [
            name
            for name in new
            if name not in blank and (name in vector_columns or _holds_vectors(table[name]))
        ]
        for name in unread:
            _check_vectors(name, [item.get(name) for item in items])
        return cls(table.drop(columns=blank + unread), vectors)


def missing_values(spec: Mapping[str, Any], num_items: int) -> np.ndarray:
    """An input of the item tower that is known of no item, `[num_items, ...]`.

    Args:
        spec: Name, dtype and shape of the input, as in the manifest.
        num_items: Number of items.

    >>> missing_values({"dtype": "string", "shape": [None, None]}, 2).tolist()
    [[''], ['']]
    """
    shape = [num_items, *(size or 1 for size in spec["shape"][1:])]
    kind = object if spec["dtype"] == "string" else spec["dtype"]
    return np.full(shape, MISSING[spec["dtype"]], kind)


def vector_lengths(specs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Name of each vector among the inputs of an item tower -> its length.

    Args:
        specs: Name, dtype and shape of each input, as in the manifest.

    >>> vector_lengths([{"name": "sound", "dtype": "float32", "shape": [None, 2]}])
    {'sound': 2}
    """
    return {
        spec["name"]: spec["shape"][1]
        for spec in specs
        if spec["dtype"] == "float32" and len(spec["shape"]) == 2
    }


def is_missing(value: Any) -> bool:
    """Whether a value of a column is none, as an empty list is."""
    if isinstance(value, list | tuple | np.ndarray):
        return len(value) == 0
    return value is None or value is pd.NA or value != value


def _holds_vectors(values: pd.Series) -> bool:
    """Whether all that is known of a column are lists of numbers."""
    known = [value for value in values if not is_missing(value)]
    return len(known) > 0 and all(map(_is_list_of_numbers, known))


def _is_list_of_numbers(value: Any) -> bool:
    is_list = isinstance(value, list | tuple | np.ndarray)
    return is_list and all(
        isinstance(entry, numbers.Real) and not isinstance(entry, bool) for entry in value
    )


def _check_vectors(name: str, values: Sequence[Any]) -> None:
    """Raises ColumnError for a value that is neither missing nor a list of numbers."""
    for row, value in enumerate(values):
        if not is_missing(value) and not _is_list_of_numbers(value):
            problem = (
                f"is {_described(value)}; items were added with lists of numbers in this column. "
                "Give a list of numbers, or the column another name"
            )
            raise ColumnError("items", name, row, problem)


def _vectors(name: str, values: Sequence[Any], length: int) -> np.ndarray:
    """`[num_items, length]` float32, NaN for items without a vector.

    Raises:
        ColumnError: A value that is no list of so many finite numbers.
    """
    vectors = np.full((len(values), length), np.nan, np.float32)
    for row, value in enumerate(values):
        if is_missing(value):
            continue
        if not _is_list_of_numbers(value) or len(value) != length:
            problem = f"is {_described(value)}; the item tower reads a list of {length} numbers"
            raise ColumnError("items", name, row, problem)
        with np.errstate(over="ignore"):
            vectors[row] = value
        if np.isinf(vectors[row]).any():
            problem = "has an infinite number; numbers must be finite as float32"
            raise ColumnError("items", name, row, problem)
    return vectors


def _described(value: Any) -> str:
    """What a value is, for an error."""
    if not isinstance(value, list | tuple | np.ndarray):
        return repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
    is_text = all(isinstance(entry, str) for entry in value)
    kind = "numbers" if _is_list_of_numbers(value) else "texts" if is_text else "other entries"
    return f"a list of {kind}, {len(value)} of them"
