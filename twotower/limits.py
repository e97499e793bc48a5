"""The least values that the fields of a config may have."""

import numbers


def at_least(config, **least: float) -> None:
    """Checks fields of a config.

    Args:
        config: Any object. A field that its dataclass declares as `int` must be one: True and 2.0
            are none.
        **least: Field -> its least value.

    Raises:
        ValueError: A field under it; the message names the field, both values and no more.

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
