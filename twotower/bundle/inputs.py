"""Raw inputs of towers: made for one request, and checked before TensorFlow casts them."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from twotower.data.times import LATEST

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


def query_tensors(
    wanted: Mapping[str, tuple[str, list]],
    inputs: Mapping[str, np.ndarray],
    is_event: bool = False,
) -> dict[str, Any]:
    """Raw inputs of the query tower as tensors, name -> tensor.

    Args:
        wanted: Name of each input of the tower -> its dtype and shape, as in the manifest.
        inputs: Arrays by name, a row for each query.
        is_event: Whether they are one event for each query, `[num_queries]` instead of
            `[num_queries, length]` for each input of a history.

    Raises:
        ValueError: An input that is missing, or that the tower does not have; values of another
            type or rank, rows of different length, numbers that are infinite, or times that are
            no whole seconds.
    """
    missing, unknown = wanted.keys() - inputs.keys(), inputs.keys() - wanted.keys()
    if missing or unknown:
        raise ValueError(
            f"the query tower takes {sorted(wanted)}; missing {sorted(missing)}, unknown "
            f"{sorted(unknown)}. What is not known of a request is '' or NaN or -1."
        )
    tensors = {
        name: tensor(name, inputs[name], dtype, None if is_event else shape)
        for name, (dtype, shape) in wanted.items()
    }
    for name, values in tensors.items():
        events, _, what = name.rpartition("_")
        if what not in ("time", "rating") or events not in tensors:
            continue
        if values.shape != (expected := tensors[events].shape):
            raise ValueError(f"{name}: {values.shape} and {events}: {expected} differ.")
    if len({tuple(values.shape[:1]) for values in tensors.values()}) > 1:
        rows = {name: values.shape[:1] for name, values in tensors.items()}
        raise ValueError(f"inputs have a row a query each; got {rows}.")
    return tensors


def tensor(name: str, values: ArrayLike, dtype: str, shape: Sequence[int | None] | None) -> Any:
    """One raw input of a tower as a tensor.

    Args:
        name: Name of the input.
        values: Its values, a row for each query or item.
        dtype: `string`, `float32` or `int64`.
        shape: What the tower takes, as in the manifest; None for a shape that is not checked.

    Raises:
        ValueError: Values of another type or shape, rows of different length, or numbers that are
            infinite.
    """
    import tensorflow as tf

    if dtype != "string":
        values = as_type(name, values, dtype)
    try:
        made = tf.constant(values, dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected {dtype}, {SAME_LENGTH}; {error}") from error
    if shape is not None and not made.shape.is_compatible_with(shape):
        raise ValueError(
            f"{name}: expected the shape {tuple(shape)}, a row each; got {tuple(made.shape)}."
        )
    return made
