"""Ragged: rows of different length as two flat arrays. Numpy only, no package imports."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows of different length: row `i` is `values[offsets[i]:offsets[i + 1]]`.

    Histories, exclusions and targets are all of this shape. It costs two arrays however many rows
    there are, so that nothing in evaluation or retrieval needs a Python loop over users.

    Attributes:
        values: `[num_values]`, the rows one after another.
        offsets: `[num_rows + 1]` int64, ascending from 0 to `num_values`.

    >>> ragged = Ragged.from_rows([[7, 8], [], [9]])
    >>> ragged.lengths.tolist(), ragged[0].tolist(), ragged.row_index.tolist()
    ([2, 0, 1], [7, 8], [0, 0, 2])
    """

    values: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        offsets = integers(self.offsets, "offsets")
        values = np.asarray(self.values)
        if values.ndim != 1:
            raise ValueError(f"values must be [num_values], row after row; got {values.shape}.")
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0:
            raise ValueError(f"offsets must be [num_rows + 1] and start at 0; got {offsets!r}.")
        if offsets[-1] != len(values) or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(
                f"offsets must ascend to the {len(values)} values; they end at {offsets[-1]}."
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", offsets)

    @classmethod
    def from_rows(cls, rows: Iterable[Iterable], dtype: DTypeLike = np.int64) -> "Ragged":
        """From a list of rows, each a list or array of values `[length]`.

        Raises:
            ValueError: `dtype` is an integer type, and a value is not an integer or does not fit.
        """
        is_whole = np.dtype(dtype).kind in "iu"
        arrays = [row if isinstance(row, np.ndarray) else list(row) for row in rows]
        arrays = [
            integers(row, "values", dtype) if is_whole else np.asarray(row, dtype) for row in arrays
        ]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype)
        return cls.from_lengths(values, [len(row) for row in arrays])

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: ArrayLike) -> "Ragged":
        """From values `[num_values]`, row after row, and the length of each row `[num_rows]`."""
        ends = np.cumsum(integers(lengths, "lengths"))
        return cls(values, np.concatenate([[0], ends]))

    @classmethod
    def ranges(cls, starts: np.ndarray, lengths: np.ndarray) -> "Ragged":
        """Consecutive integers: row `i` is `starts[i], ..., starts[i] + lengths[i] - 1`."""
        ends = np.cumsum(lengths)
        values = np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)
        return cls.from_lengths(values, lengths)

    @classmethod
    def group(cls, values: np.ndarray, row: np.ndarray, num_rows: int) -> "Ragged":
        """Puts `values[j]` into row `row[j]`; within a row, the values keep their order.

        Args:
            values: `[num_values]`.
            row: `[num_values]` integers from 0 to `num_rows - 1`.
            num_rows: Number of rows.

        Raises:
            ValueError: A row that does not exist.
        """
        row = np.asarray(row)
        if row.size and not 0 <= row.min() <= row.max() < num_rows:
            wrong = row.max() if row.max() >= num_rows else row.min()
            raise ValueError(f"row {wrong} does not exist among {num_rows} rows.")
        order = np.argsort(row, kind="stable")
        return cls.from_lengths(np.asarray(values)[order], np.bincount(row, minlength=num_rows))

    @classmethod
    def empty(cls, num_rows: int, dtype: DTypeLike = np.int64) -> "Ragged":
        """`num_rows` rows without a value."""
        return cls(np.empty(0, dtype), np.zeros(num_rows + 1, np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row, `[num_rows]`."""
        return np.diff(self.offsets)

    @property
    def row_index(self) -> np.ndarray:
        """The row that each value belongs to, `[num_values]`."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(f"there is no row {row} of {len(self)}.")
        row = row % len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: np.ndarray) -> "Ragged":
        """The given rows, in the given order: indices `[n]`, or a boolean mask `[num_rows]`."""
        rows = np.arange(len(self))[rows]
        places = Ragged.ranges(self.offsets[rows], self.lengths[rows])
        return Ragged(self.values[places.values], places.offsets)

    def where(self, keep: np.ndarray) -> "Ragged":
        """The rows with only those values for which `keep` `[num_values]` bool holds.

        >>> Ragged.from_rows([[7, 8], [9]]).where(np.array([False, True, False])).lengths.tolist()
        [1, 0]
        """
        before = np.concatenate([[0], np.cumsum(keep)])
        return Ragged(self.values[keep], before[self.offsets])

    def last(self, length: int) -> "Ragged":
        """The last `length` values of each row; all values of a shorter row."""
        lengths = np.minimum(self.lengths, length)
        places = Ragged.ranges(self.offsets[1:] - lengths, lengths)
        return Ragged(self.values[places.values], places.offsets)

    def to_dense(self, fill: Any, width: int | None = None) -> np.ndarray:
        """`[num_rows, width]`, each row padded on the right with `fill`.

        Args:
            fill: The value after the end of a row.
            width: Columns; the longest row's length by default.

        Raises:
            ValueError: A row is longer than `width`, or the values' type cannot hold `fill` (NaN
                among integers, a longer string among fixed-width ones).
        """
        lengths = self.lengths
        longest = int(lengths.max(initial=0))
        width = longest if width is None else width
        if longest > width:
            raise ValueError(f"a row of {longest} values does not fit into width {width}.")
        dtype = self.values.dtype
        if dtype.kind not in "fcO" and len(self) * width > len(self.values):
            with np.errstate(invalid="ignore"):
                if np.array(fill).astype(dtype) != fill:
                    raise ValueError(f"values of type {dtype} cannot hold the fill {fill!r}.")
        dense = np.full((len(self), width), fill, dtype)
        dense[np.arange(width) < lengths[:, None]] = self.values
        return dense


def integers(values: ArrayLike, name: str, dtype: DTypeLike = np.int64) -> np.ndarray:
    """`values`, of any shape, as `dtype`; an empty list of any type will do.

    Raises:
        ValueError: Values that numpy would cut (1.5), parse ("1"), count (True) or wrap around
            (2**64 - 1).
    """
    values = np.asarray(values)
    if values.dtype == dtype:  # the usual case, many times a request
        return values
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers; got {values.dtype}.")
    if values.size and values.dtype != dtype:
        least, most, limits = values.min(), values.max(), np.iinfo(dtype)
        if not limits.min <= least <= most <= limits.max:
            raise ValueError(f"{name} must fit {np.dtype(dtype)}; got {least} to {most}.")
    return values.astype(dtype, copy=False)
