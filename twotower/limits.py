"""Checks of a config's fields: types, least values, and no setting without an effect."""

import dataclasses
import math
import numbers
import types
import typing
from typing import Any

import numpy as np

MAX_INT32 = 2**31 - 1


def typed(config: Any) -> None:
    """Checks fields of a dataclass that are declared as `bool`, `int`, `float`, one of these or
    None, or a tuple of any length, and the entries of such tuples. Other types are not checked.

    NumPy's scalars become Python's, since JSON, the format of manifests, cannot hold them. Lists
    and arrays become tuples. The text "False" is refused, since it would count as true.

    Raises:
        ValueError: A value of another type; the message names the field.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     cosine: bool = True
    ...     hidden: tuple[int, ...] = ()
    ...     def __post_init__(self):
    ...         typed(self)
    >>> Config(np.bool_(True), np.array([8, 4]))
    Config(cosine=True, hidden=(8, 4))
    >>> Config(cosine="False")
    Traceback (most recent call last):
    ValueError: cosine must be True or False; got 'False'.
    """
    for field in dataclasses.fields(config):
        if field.init:
            value = _typed(getattr(config, field.name), field.type, field.name)
            object.__setattr__(config, field.name, value)


def _typed(value: Any, kind: Any, name: str) -> Any:
    """The value as a Python type, checked if its declared type is one that `typed` checks."""
    if typing.get_origin(kind) is tuple:
        of_entries, *rest = typing.get_args(kind)
        if rest != [...]:  # of a fixed length
            return value
        if not isinstance(value, list | tuple | np.ndarray):
            raise ValueError(f"{name} must be a tuple; got {value!r}.")
        return tuple(_typed(entry, of_entries, name) for entry in value)
    if isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind):
        if value is None:
            return None
        (kind,) = {*typing.get_args(kind)} - {type(None)}
    plain = value.item() if isinstance(value, np.generic) else value
    if kind in WORDS:
        number, word = WORDS[kind]
        if not isinstance(plain, number) or isinstance(plain, bool) != (kind is bool):
            raise ValueError(f"{name} must be {word}; got {value!r}.")
        if isinstance(plain, int):
            require_int64(plain, name)
    return plain


# Declared type -> what a value must be, and the words for it.
WORDS = {
    bool: (bool, "True or False"),
    int: (int, "an integer"),
    float: (numbers.Real, "a number"),
}


def at_least(config: Any, **least: float) -> None:
    """Checks fields of a config.

    Args:
        config: Any object. A field that its dataclass declares as `int` must be one; True and 2.0
            are refused.
        **least: Field -> its least value.

    Raises:
        ValueError: A field below its least value, not finite, or not an integer where it must be
            one.

    >>> import types
    >>> at_least(types.SimpleNamespace(k=0), k=1)
    Traceback (most recent call last):
    ValueError: k must be 1 or more; got 0.
    """
    declared = getattr(config, "__dataclass_fields__", {})
    for name, value in least.items():
        given = getattr(config, name)
        if name in declared and declared[name].type is int and not _is_whole(given):
            raise ValueError(f"{name} must be an integer; got {given!r}.")
        if not given >= value:
            raise ValueError(f"{name} must be {value} or more; got {given}.")
        if given == math.inf:
            raise ValueError(f"{name} must be finite; got infinity.")


def within_int32(config: Any) -> None:
    """Checks that fields that a dataclass declares as `int` fit an int32, the type in which
    libraries take parameters.

    Raises:
        ValueError: A field above 2 ** 31 - 1.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     threads: int
    >>> within_int32(Config(2**40))
    Traceback (most recent call last):
    ValueError: threads must be 2147483647 or less; got 1099511627776.
    """
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        if field.type is int and given > MAX_INT32:
            raise ValueError(f"{field.name} must be {MAX_INT32} or less; got {given}.")


def whole_number(value: Any, name: str, least: int = 0) -> int:
    """The number as a Python int, which SQLite, JSON and shapes take.

    Raises:
        ValueError: Not an integer (True and 2.0 are refused), or an integer below `least`.

    >>> whole_number(2.0, "k")
    Traceback (most recent call last):
    ValueError: k must be an integer of 0 or more; got 2.0.
    """
    if not _is_whole(value) or value < least:
        raise ValueError(f"{name} must be an integer of {least} or more; got {value!r}.")
    return int(value)


def require_int64(value: int, name: str) -> None:
    """Raises ValueError for an integer that does not fit an int64, as arrays require.

    >>> require_int64(2**63, "seed")
    Traceback (most recent call last):
    ValueError: seed must fit an int64; got 9223372036854775808.
    """
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit an int64; got {value}.")


def _is_whole(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy; False for True, a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def unread(config: Any, is_read: bool, needed: str, *fields: str) -> list[str]:
    """A sentence for each field that is set although nothing reads it.

    Args:
        config: A dataclass with a default for each field.
        is_read: Whether anything reads the fields, given the other settings.
        needed: The setting without which nothing reads them.
        *fields: Names.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     loss: str = "softmax"
    ...     margin: float = 0.2
    >>> unread(Config(margin=0.5), False, "loss='triplet'", "margin")
    ["margin=0.5 has no effect without loss='triplet'."]
    """
    default = {field.name: field.default for field in dataclasses.fields(config)}
    return [
        f"{name}={getattr(config, name)!r} has no effect without {needed}."
        for name in fields
        if not is_read and getattr(config, name) != default[name]
    ]


def refuse(sentences: list[str]) -> None:
    """Raises ValueError with the sentences of `unread`, if there are any. If such a setting were
    ignored, the recipe would say something that is not true of the model."""
    if sentences:
        raise ValueError(" ".join([*sentences, "Leave it out."]))
