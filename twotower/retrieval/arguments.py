"""Checks of the arguments of an index: keys, vectors and queries, k, exclusions.

The functions return int64 or float32 in native byte order, contiguous, so that no backend has to
check again. Numpy only.
"""

import numpy as np
from numpy.typing import ArrayLike

from twotower.ragged import Ragged, integers

# Longest vector that is accepted. A squared distance is at most (2 * MAX_LENGTH)**2, and k-means
# sums one for each vector of a list. If a sum exceeds float32 (3.4e38), FAISS ends the process.
MAX_LENGTH = 1e18


def checked_keys(keys: ArrayLike, name: str) -> np.ndarray:
    """`keys` as `[num_keys]` int64; an empty list of any type will do.

    Raises:
        ValueError: Another shape; values that are not integers, such as a boolean mask; or integers
            of 2**63 or more.
    """
    keys = integers(keys, name)
    if keys.ndim != 1:
        raise ValueError(f"{name} must be [num_keys] integers; got {keys.shape}.")
    return keys


def checked_rows(
    rows: np.ndarray, metric: str, name: str, labels: np.ndarray | None = None
) -> np.ndarray:
    """Vectors as an index takes them.

    Args:
        rows: `[num_rows, dim]` floats.
        metric: Under `cosine` the rows are scaled to length 1; otherwise contiguous float32 rows
            are not copied.
        name: What the rows are, for error messages, such as `vectors of keys`.
        labels: `[num_rows]`, name of each row in error messages; None for its number.

    Returns:
        `[num_rows, dim]` float32, contiguous.

    Raises:
        ValueError: A row with NaN or infinity; a row longer than `MAX_LENGTH`, except under cosine;
            or a row of length 0 under cosine.
    """
    if rows.dtype != np.float32 or not (rows.flags.c_contiguous and rows.flags.aligned):
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused below
            rows = np.require(rows, np.float32, ["C", "A"])
    # No row is longer than all of them together; NaN is not less than anything.
    if metric != "cosine" and np.vdot(rows, rows) <= MAX_LENGTH**2:
        return rows
    # float64, so that very short and very long vectors keep their length.
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))

    def refuse(wrong: np.ndarray, why: str) -> None:
        if wrong.any():
            which = np.flatnonzero(wrong)[:5]
            raise ValueError(
                f"{name} {(which if labels is None else labels[which]).tolist()} {why}"
            )

    refuse(~np.isfinite(lengths), "hold NaN or infinite values (float32 ends at 3.4e38).")
    if metric == "cosine":
        refuse(lengths == 0, "are zero: a zero vector has no direction for cosine.")
        scaled = np.empty_like(rows)
        return np.divide(rows, lengths[:, None], out=scaled, casting="same_kind")
    refuse(
        lengths > MAX_LENGTH,
        f"are longer than {MAX_LENGTH:g}, so float32 cannot hold all their scores. Scale items and "
        "queries down, or take the metric cosine.",
    )
    return rows


def checked_exclude(exclude: Ragged, num_queries: int) -> Ragged | None:
    """`exclude` with int64 keys, `num_queries` rows; None if nothing is excluded.

    Raises:
        ValueError: `exclude` is not a `Ragged`, has another number of rows than queries, or holds
            values that are not keys.
    """
    if not isinstance(exclude, Ragged):
        raise ValueError(
            f"exclude must be a Ragged of keys, such as Ragged.from_rows([[3, 5], []]); got "
            f"{type(exclude).__name__}."
        )
    if len(exclude) != num_queries:
        raise ValueError(
            f"exclude has {len(exclude)} rows for {num_queries} queries; give one a query."
        )
    keys = checked_keys(exclude.values, "exclude")
    return Ragged(keys, exclude.offsets) if len(keys) else None
