"""Raw inputs of the query tower: made for one request, and checked before TensorFlow casts them."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from twotower.data.columns import LATEST

SAME_LENGTH = "every row of the same length (pad with '', NaN or -1)"


def query_inputs(
    names: Collection[str],
    history: Sequence[str],
    times: Sequence[int] | None = None,
    ratings: Sequence[float] | None = None,
    others: Mapping[str, Any] | None = None,
    now: int | None = None,
) -> dict[str, np.ndarray]:
    """Raw inputs of the query tower for one request, each with a batch dimension of 1.

    Args:
        names: Inputs that the tower takes.
        history: Ids of what was liked, oldest first.
        times: When, in seconds; unknown by default.
        ratings: How much; unknown by default.
        others: Further inputs, such as `{"user_id": "42", "gender": "F"}`; unknown by default.
        now: Time of the request in seconds; that of the call by default.

    Raises:
        ValueError: Times or ratings of another number than the history.
    """
    length = len(history)
    for name, values in (("times", times), ("ratings", ratings)):
        if values is not None and len(values) != length:
            raise ValueError(f"{name}: expected one for each of {length} items; got {len(values)}.")
    times = [-1] * length if times is None else times
    ratings = [np.nan] * length if ratings is None else ratings
    inputs = {
        "history": np.array(history, object).reshape(1, length),
        "history_time": np.array(times).reshape(1, length),
        "history_rating": np.array(ratings, np.float32).reshape(1, length),
        "time": np.array([int(time.time()) if now is None else now]),
    }
    inputs |= {name: np.array([value], object) for name, value in (others or {}).items()}
    return {name: inputs.get(name, np.array([""], object)) for name in names}


def as_type(name: str, values: ArrayLike, dtype: str) -> np.ndarray:
    """Numbers cast to a dtype without loss; NaN, a missing value, stays NaN.

    Raises:
        ValueError: Values that the dtype cannot hold and TensorFlow would silently change
            (fractions, NaN and large numbers as integers), infinity, or times that are not in
            seconds; the message names the row.
    """
    try:
        given = np.asarray(values)
        if given.dtype.kind not in "biufO":
            raise TypeError(f"got {given.dtype}.")
        with np.errstate(all="ignore"):
            numbers = given.astype(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected {dtype}, {SAME_LENGTH}; {error}") from error
    if numbers.dtype.kind == "f":
        wrong, reason = np.isinf(numbers), "numbers are finite, or NaN where there is none."
    else:
        wrong, reason = numbers != given, f"expected {dtype}, -1 where there is none."
        if name.endswith("time") and not wrong.any():
            wrong = (numbers < -LATEST) | (numbers > LATEST)
            reason = "times are seconds; are these milliseconds?"
    if wrong.any():
        index = tuple(np.argwhere(np.atleast_1d(wrong))[0])
        number = np.atleast_1d(given)[index]
        raise ValueError(f"{name}: {reason} Row {index[0]} has {number}.")
    return numbers
