"""The least values that the fields of a config may have."""


def at_least(config, **least: float) -> None:
    """Checks fields of a config.

    Args:
        config: Any object.
        **least: Field -> its least value.

    Raises:
        ValueError: A field under it; the message names the field, both values and no more.

    >>> import types
    >>> at_least(types.SimpleNamespace(k=0), k=1)
    Traceback (most recent call last):
    ValueError: k must be 1 or more; got 0.
    """
    for name, value in least.items():
        if not getattr(config, name) >= value:
            raise ValueError(f"{name} must be {value} or more; got {getattr(config, name)}.")
