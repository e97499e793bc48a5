"""The item tower: id, title, genres, maker, year, age, ... -> [batch_size, dim]."""

import numpy as np
import pandas as pd

from twotower.towers.config import DenseConfig, ItemConfig
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.features import Feature, Id, Tags, Tokens
from twotower.towers.numbers import Number, Vector


def item_feature(name: str, values: pd.Series, config: ItemConfig) -> Feature:
    """The layer for one column of items. The values of the column decide its kind.

    Args:
        name: Name of the column.
        values: The column of the items that have training rows, a row for each item.
        config: Lengths of vectors.

    Raises:
        ValueError: The column holds values that no feature reads.

    >>> year = pd.Series([1990.0, 2000.0, 2010.0])
    >>> type(item_feature("year", year, ItemConfig())).__name__
    'Number'
    """
    first = values.iloc[0]
    if name == "item_id":
        return Id.fit(name, values, dim=config.id_dim, unknown_rate=config.unknown_rate)
    if name in ("title", "description"):
        return Tokens.fit(name, values, min_count=config.min_token_count, dim=config.token_dim)
    if isinstance(first, tuple | list):
        return Tags.fit(name, values, dim=config.token_dim)
    if isinstance(first, np.ndarray):
        return Vector.fit(name, values)
    if isinstance(first, str):
        return Id.fit(name, values, dim=config.token_dim)
    if np.issubdtype(np.asarray(values).dtype, np.number):
        return Number.fit(name, values)
    raise ValueError(f"item column {name!r} holds {type(first).__name__}; no feature reads that.")


def item_tower(columns: pd.DataFrame, config: ItemConfig) -> Tower:
    """Builds the tower from the items of the training rows.

    Args:
        columns: A row for each item that has training rows, with the columns of `config.features`.
        config: Features and sizes.

    Raises:
        ValueError: A feature that the data does not have, or a shortcut without an id of length
            `dim`.

    >>> from twotower.tf import tf
    >>> items = pd.DataFrame({"item_id": ["a", "b"], "title": ["Toy Story", "Toy Soldiers"]})
    >>> tower = item_tower(items, ItemConfig(("item_id", "title"), id_dim=4, token_dim=4, dim=8))
    >>> tower.embed({"item_id": tf.constant(["a"]), "title": tf.constant(["Toys"])}).shape.as_list()
    [1, 8]
    """
    unknown = [name for name in config.features if name not in columns]
    if unknown:
        raise ValueError(
            f"unknown item features {unknown}; this dataset has {sorted(columns.columns)}."
        )
    features = [item_feature(name, columns[name], config) for name in config.features]
    if config.shortcut and ("item_id" not in config.features or config.id_dim != config.dim):
        raise ValueError(
            f"the shortcut needs item_id, of length dim; got {list(config.features)}, id_dim "
            f"{config.id_dim} and dim {config.dim}."
        )
    shortcut = "item_id" if config.shortcut else ""
    return Tower(features, head(config), name="item_tower", shortcut=shortcut)


def head(config: DenseConfig) -> DenseHead:
    """The dense layers that a tower's config asks for."""
    return DenseHead(
        config.hidden,
        config.dim,
        config.l2_normalise,
        config.dropout,
        config.batch_norm,
        starts_at_zero=config.shortcut,
    )
