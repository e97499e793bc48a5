"""The query tower: history, user, search text, context -> [batch_size, dim]."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from twotower.data.config import TIME_DEPENDENT
from twotower.towers.config import QueryConfig
from twotower.towers.dense import Tower
from twotower.towers.features import Feature, Id, Tokens
from twotower.towers.history.bag import History, MeanHistory
from twotower.towers.history.config import MeanConfig, SequenceConfig
from twotower.towers.history.content import ItemContent
from twotower.towers.history.gru import GRUHistory
from twotower.towers.history.hstu import HSTUHistory
from twotower.towers.history.pooling import AttentionHistory, RecencyHistory
from twotower.towers.history.transformer import MaskedTransformerHistory, TransformerHistory
from twotower.towers.item import head
from twotower.towers.numbers import Clock

HISTORIES = {
    "mean": MeanHistory,
    "recency": RecencyHistory,
    "attention": AttentionHistory,
    "gru": GRUHistory,
    "transformer": TransformerHistory,
    "masked_transformer": MaskedTransformerHistory,
    "hstu": HSTUHistory,
}


def query_feature(name: str, values: np.ndarray, config: QueryConfig) -> Feature:
    """The layer for one query feature.

    Args:
        name: `time`, `search_text`, or a column of users or of the context.
        values: `[num_rows]`, its values in the training rows.
        config: Lengths of vectors.
    """
    if name == "time":
        return Clock(name, config.category_dim)
    if name == "search_text":
        return Tokens.fit(name, values, min_count=2, dim=4 * config.category_dim)
    if name == "user_id":
        return Id.fit(name, values, dim=config.user_dim, unknown_rate=config.unknown_rate)
    return Id.fit(name, values, dim=config.category_dim)


def history_feature(
    ids: np.ndarray,
    config: QueryConfig,
    item_id: Id | None = None,
    content: Callable[[Sequence[str], int], ItemContent] | None = None,
) -> History:
    """The history encoder that a config asks for.

    Args:
        ids: `[num_items]`, ids of the items of the training rows.
        config: The encoder's config.
        item_id: Feature of the item tower whose vectors the history shares; None to share none.
        content: (ids, length of vectors) -> the features of these items, for a history that reads
            them.

    Raises:
        ValueError: Features of past items that the item tower does not have, or a history's `dim`
            that is not the length of the vectors that the towers share.
    """
    history = config.history.sized(None if item_id is None else item_id.dim)
    vocabulary, more = sorted(set(ids)), {}
    if item_id is not None:
        vocabulary, more["table"] = item_id.vocabulary, item_id.table
    if isinstance(history, SequenceConfig) and history.content:
        if content is None:
            raise ValueError("history_content needs an item tower with more than ids.")
        more["content"] = content(vocabulary, history.dim)
    return HISTORIES[history.encoder]("history", vocabulary, history, **more)


def query_tower(
    columns: Mapping[str, np.ndarray],
    config: QueryConfig,
    items: Tower | None = None,
    item_inputs: Callable[[Sequence[str]], Mapping] | None = None,
) -> Tower:
    """Builds the tower from the values of the training rows.

    Args:
        columns: Name of a feature -> its values in the training rows (item ids for `history`).
        config: Features and sizes.
        items: The item tower, if the towers share weights or the history reads item features.
        item_inputs: Ids -> the item tower's encoded inputs, if the history reads item features.

    Raises:
        ValueError: A feature that the data does not have, or towers that cannot share as asked.

    >>> from twotower.tf import tf
    >>> tower = query_tower({"history": np.array(["a", "b"], object)}, QueryConfig(dim=8))
    >>> tower.embed({"history": tf.constant([["a", "b"], ["", ""]])}).shape.as_list()
    [2, 8]
    """
    unknown = [name for name in config.features if name not in columns]
    if unknown:
        raise ValueError(f"unknown query features {unknown}; this dataset has {sorted(columns)}.")
    if "time" in config.features and getattr(config.history, "request_time", False):
        raise ValueError(
            "the feature 'time' reads the hour and weekday of a request, history_request_time how "
            "long ago each event was; both read the input 'time', so take one of them."
        )
    item_id = None if config.shared == "nothing" else _shareable(config, items)
    content = None
    if items is not None and item_inputs is not None:
        content = _content(config, items, item_inputs)
    features = [
        history_feature(columns[name], config, item_id, content)
        if name == "history"
        else query_feature(name, columns[name], config)
        for name in config.features
    ]
    layers = items.head if config.shared == "tower" else head(config)
    sizes = [feature.size for feature in features if isinstance(feature, History)]
    if config.shortcut and sizes != [layers.dim]:
        raise ValueError(
            f"the shortcut needs a history whose vector has the tower's length {layers.dim}; got "
            f"{list(config.features)}, the history {config.history.encoder!r} of length {sizes}."
        )
    shortcut = "history" if config.shortcut else ""
    return Tower(features, layers, name="query_tower", shortcut=shortcut)


def _content(
    config: QueryConfig, items: Tower, item_inputs: Callable[[Sequence[str]], Mapping]
) -> Callable[[Sequence[str], int], ItemContent] | None:
    """(ids, length of vectors) -> the features of these items; with the item tower's weights, if
    the towers share any. None if the item tower has only ids."""
    # Without time-dependent features, whose values at the time of a past event are not known here.
    features = [
        feature for feature in items.features if feature.name not in ("item_id", *TIME_DEPENDENT)
    ]
    if not features:
        return None
    if config.shared == "nothing":
        features = [type(feature)(**feature.get_config()) for feature in features]

    def content(ids: Sequence[str], dim: int) -> ItemContent:
        encoded, needed = item_inputs(ids), [spec.name for f in features for spec in f.inputs]
        return ItemContent(features, {name: encoded[name] for name in needed}, dim)

    return content


def _shareable(config: QueryConfig, items: Tower | None) -> Id:
    """The item tower's feature `item_id`, if the towers can share what the config asks for."""
    features = {} if items is None else {feature.name: feature for feature in items.features}
    if "item_id" not in features or "history" not in config.features:
        raise ValueError(
            f"to share {config.shared} the item tower needs item_id and the query tower history; "
            f"got {[*features]} and {list(config.features)}."
        )
    alone = len(features) == 1 and config.features == ("history",)
    if config.shared == "tower" and not (alone and isinstance(config.history, MeanConfig)):
        raise ValueError(
            f"to share the tower both need inputs of one length: item_id alone and a mean history "
            f"alone; got {[*features]} and {config.history.encoder} {list(config.features)}."
        )
    if config.shared == "tower" and config.history.ratings:
        raise ValueError("history_ratings makes the query's input longer than the item's.")
    return features["item_id"]
