"""What the fields of a config may hold: least values, and none that nothing reads."""

import dataclasses
import math
import numbers


def at_least(config, **least: float) -> None:
    """Checks fields of a config.

    Args:
        config: Any object. A field that its dataclass declares as `int` must be one: True and 2.0
            are none.
        **least: Field -> its least value.

    Raises:
        ValueError: A field under it, or not finite; the message names the field, both values and no
            more.

    >>> import types
    >>> at_least(types.SimpleNamespace(k=0), k=1)
    Traceback (most recent call last):
    ValueError: k must be 1 or more; got 0.
    """
    declared = getattr(config, "__dataclass_fields__", {})
    for name, value in least.items():
        given = getattr(config, name)
        whole = isinstance(given, numbers.Integral) and not isinstance(given, bool)
        if name in declared and declared[name].type is int and not whole:
            raise ValueError(f"{name} must be an integer; got {given!r}.")
        if not given >= value:
            raise ValueError(f"{name} must be {value} or more; got {given}.")
        if given == math.inf:
            raise ValueError(f"{name} must be finite; got infinity.")


def unread(config, is_read: bool, needed: str, *fields: str) -> list[str]:
    """A sentence for each field that is set and that nothing reads.

    Args:
        config: A dataclass with a default for each field.
        is_read: Whether anything reads the fields as the config stands.
        needed: What it would take.
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
    """Raises ValueError with the sentences that `unread` found, if there are any: silently left
    out, a setting would claim what its result was not trained with."""
    if sentences:
        raise ValueError(" ".join([*sentences, "Leave it out."]))
