"""QueryTower: user, history, search text, context -> [batch_size, dim]."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from twotower import require_legacy_keras

require_legacy_keras()
from twotower.features import Clock, Feature, Id, Tokens  # noqa: E402
from twotower.towers.dense import Tower  # noqa: E402
from twotower.towers.history import AttentionHistory, MeanHistory  # noqa: E402
from twotower.towers.item import head  # noqa: E402

SHARED = ("nothing", "item_embedding", "tower")
HISTORIES = {"mean": MeanHistory, "attention": AttentionHistory}


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """What the query tower reads, and its sizes.

    Attributes:
        features: `history`, `time` (hour and weekday of the request), `search_text`, columns of
            `Dataset.users` (`user_id`, demographics), `device`, `country`. By default the history
            alone: beside it, on MovieLens 1M, a user id learns the training rows by heart and
            costs recall, and a tower without it serves users it has never met.
        user_dim: Length of the user id's vector.
        category_dim: Length of a demographic's, device's or search text's vector.
        unknown_rate: Share of training queries whose user id is hidden, so that the row of unknown
            users is trained.
        history: `mean` or `attention`.
        history_dim: Length of a past item's vector.
        history_dropout: Share of past events left out in training.
        history_power: Exponent of the number of events that the sum is divided by (`mean`).
        history_ratings: Whether `mean` also weighs events by their ratings.
        shared: What the towers share: `nothing`; `item_embedding`, where a past item's vector is
            the item tower's for its id (`history_dim` is then that one's length); or `tower`, where
            the dense layers are the item tower's, too, so that a history is encoded as an item
            would be (a siamese network; for towers of `item_id` and a `mean` history alone).
        hidden: Widths of the hidden layers.
        dim: Length of the query's vector; must equal the item tower's.
        l2_normalise: Whether vectors have length 1.
        dropout: Share of hidden activations dropped in training.
        batch_norm: Whether hidden layers are batch-normalised.
    """

    features: tuple[str, ...] = ("history",)
    user_dim: int = 64
    category_dim: int = 16
    unknown_rate: float = 0.5
    history: str = "mean"
    history_dim: int = 256
    history_dropout: float = 0.5
    history_power: float = 0.5
    history_ratings: bool = False
    shared: str = "nothing"
    hidden: tuple[int, ...] = (512, 256)
    dim: int = 128
    l2_normalise: bool = True
    dropout: float = 0.0
    batch_norm: bool = False


def query_feature(
    name: str, values: np.ndarray, config: QueryConfig, item_id: Id | None = None
) -> Feature:
    """The layer for one query feature, with what the training rows hold of it; past items have the
    vectors of `item_id`, if given."""
    if name == "history":
        if config.history not in HISTORIES:
            raise ValueError(f"history must be one of {list(HISTORIES)}; got {config.history!r}.")
        kwargs = {"dim": config.history_dim, "dropout": config.history_dropout}
        if config.history == "mean":
            kwargs |= {"power": config.history_power, "ratings": config.history_ratings}
        if item_id is not None:
            return HISTORIES[config.history].over(name, item_id, **kwargs)
        return HISTORIES[config.history].fit(name, values, **kwargs)
    if name == "time":
        return Clock(name, config.category_dim)
    if name == "search_text":
        return Tokens.fit(name, values, min_count=2, dim=4 * config.category_dim)
    if name == "user_id":
        return Id.fit(name, values, dim=config.user_dim, unknown_rate=config.unknown_rate)
    return Id.fit(name, values, dim=config.category_dim)


def query_tower(
    columns: Mapping[str, np.ndarray], config: QueryConfig, items: Tower | None = None
) -> Tower:
    """Builds the tower from what the training rows hold.

    Args:
        columns: Feature name -> its values in the training rows (item ids for `history`).
        config: Features and sizes.
        items: The item tower, for what the towers share.

    Raises:
        ValueError: A feature that the data does not have, or towers that cannot share.
    """
    unknown = [name for name in config.features if name not in columns]
    if unknown:
        raise ValueError(f"unknown query features {unknown}; this dataset has {sorted(columns)}.")
    item_id = None if config.shared == "nothing" else _shareable(config, items)
    features = [query_feature(name, columns[name], config, item_id) for name in config.features]
    layers = items.head if config.shared == "tower" else head(config)
    return Tower(features, layers, name="query_tower")


def _shareable(config: QueryConfig, items: Tower | None) -> Id:
    """The item tower's `item_id`, if these towers can share what the config says."""
    if config.shared not in SHARED:
        raise ValueError(f"shared must be one of {SHARED}; got {config.shared!r}.")
    features = {} if items is None else {feature.name: feature for feature in items.features}
    if "item_id" not in features or "history" not in config.features:
        raise ValueError(
            f"to share {config.shared} the item tower needs item_id and the query tower history; "
            f"got {[*features]} and {list(config.features)}."
        )
    alone = len(features) == 1 and config.features == ("history",)
    if config.shared == "tower" and not (alone and config.history == "mean"):
        raise ValueError(
            f"to share the tower both need inputs of one length: item_id alone and a mean history "
            f"alone; got {[*features]} and {config.history} {list(config.features)}."
        )
    if config.shared == "tower" and config.history_ratings:
        raise ValueError("history_ratings makes the query's input longer than the item's.")
    return features["item_id"]
