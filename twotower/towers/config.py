"""ItemConfig and QueryConfig: what the towers read, and their sizes. Needs no TensorFlow."""

import dataclasses
import keyword
import re

from twotower.limits import at_least, typed
from twotower.towers.history.config import CONFIGS, HistoryConfig, MeanConfig

SHARED = ("nothing", "item_embedding", "tower")
# What the name of an input may be. TensorFlow would change other names. `saved_models.py` has
# arguments with the first two reserved names, and `get_concrete_function` has the third.
ARGUMENT, RESERVED = re.compile(r"(?!state_)[A-Za-z][A-Za-z0-9_]*"), ("exclude", "k", "self")


def is_argument(name: str) -> bool:
    """Whether an input of a SavedModel can have this name.

    TensorFlow's graphs have it in small letters, so that `K` would be `k`.

    >>> [name for name in ("price", "Brand", "a b", "class", "self", "K") if is_argument(name)]
    ['price', 'Brand']
    """
    small = name.lower()
    is_free = small not in RESERVED and not keyword.iskeyword(name)
    return bool(ARGUMENT.fullmatch(small)) and is_free


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """The dense layers of a tower: the fields that both configs have.

    Attributes:
        hidden: Widths of the hidden layers.
        dim: Length of the tower's vector; must be the same in both towers.
        l2_normalise: Whether vectors have length 1.
        dropout: Share of hidden activations dropped in training.
        batch_norm: Whether hidden layers are batch-normalised.
        shortcut: Add the vector of one feature, which must have the length `dim`, to the output of
            the dense layers. In the query tower it is the history's vector, and the dense layers
            learn only what that lacks. In the item tower it is the id's vector: an id can then move
            the item anywhere, without a projection that all ids share.
    """

    hidden: tuple[int, ...] = (512, 256)
    dim: int = 128
    l2_normalise: bool = True
    dropout: float = 0.0
    batch_norm: bool = False
    shortcut: bool = False

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, dim=1)
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden layers must have a width of 1 or more; got {self.hidden}.")
        _check_share(self, "dropout")


@dataclasses.dataclass(frozen=True)
class ItemConfig(DenseConfig):
    """What the item tower reads, and its sizes.

    Attributes:
        features: Columns of `Dataset.items`. Also `age` (days from `released`, or from the item's
            first training row, to the time of the example) and `popularity` (log of the item's
            share of the training rows before that time); these two need in-batch negatives.
        id_dim: Length of the item id's vector.
        token_dim: Length of the vector of a title, description, set of genres or maker.
        unknown_rate: Share of training items whose id is hidden (see `Id`).
        min_token_count: A word has a vector if at least this many items have it.
    """

    features: tuple[str, ...] = ("item_id", "title", "genres", "year")
    id_dim: int = 128
    token_dim: int = 64
    unknown_rate: float = 0.1
    min_token_count: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self, "unknown_rate")
        at_least(self, id_dim=1, token_dim=1, min_token_count=1)


@dataclasses.dataclass(frozen=True)
class QueryConfig(DenseConfig):
    """What the query tower reads, and its sizes.

    Attributes:
        features: `history`, `time` (hour and weekday of the request), `search_text`, `device`,
            `country`, and columns of `Dataset.users` (`user_id`, demographics). The default is the
            history alone: a tower without user ids also serves users who are new.
        user_dim: Length of the user id's vector.
        category_dim: Length of the vector of a demographic, a device, an hour or a weekday; a
            search text has four times this length.
        unknown_rate: Share of training queries whose user id is hidden, so that the vector of
            unknown users is trained.
        history: The history encoder, its sizes and what it reads: a config of history/config.py,
            such as `GRUConfig(layers=1)`.
        shared: What the towers share. `nothing`; `item_embedding`: a past item's vector is the item
            tower's vector of its id, and the history's `dim` is its length; or `tower`: the dense
            layers are shared, too, so that a history is encoded as an item is (a siamese network;
            only for towers with the features `item_id` and a `mean` history).
    """

    features: tuple[str, ...] = ("history",)
    user_dim: int = 64
    category_dim: int = 16
    unknown_rate: float = 0.5
    history: HistoryConfig = MeanConfig()
    shared: str = "nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self, "unknown_rate")
        at_least(self, user_dim=1, category_dim=1)
        if self.shared not in SHARED:
            raise ValueError(f"shared must be one of {SHARED}; got {self.shared!r}.")
        if type(self.history) not in CONFIGS.values():
            raise TypeError(
                f"history must be the config of an encoder, such as GRUConfig(); got "
                f"{self.history!r}. To name the encoder alone, take Recipe(query_history='gru')."
            )


def _check_share(config: DenseConfig, name: str) -> None:
    """Raises ValueError if the field `name` is outside [0, 1)."""
    if not 0 <= getattr(config, name) < 1:
        raise ValueError(f"{name} must lie in [0, 1); got {getattr(config, name)}.")
