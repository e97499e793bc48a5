"""ItemConfig and QueryConfig: what the towers read, and their sizes; without TensorFlow."""

import dataclasses

# Features that are known of an item only together with a time, not from its row alone.
TIMED = ("age", "popularity")


@dataclasses.dataclass(frozen=True)
class ItemConfig:
    """What the item tower reads, and its sizes.

    Attributes:
        features: Columns of `Dataset.items`, or `age` (days from `released`, or from the item's
            first training row, to the time of the example) or `popularity` (log of the item's
            share of the training rows up to that time); with these, negatives are the batch's.
        id_dim: Length of the item id's vector.
        token_dim: Length of a title's, description's, genre set's or maker's vector.
        unknown_rate: Share of training items whose id is hidden (see `Id`).
        min_token_count: A word counts from this many items on.
        hidden: Widths of the hidden layers.
        dim: Length of the item's vector; must equal the query tower's.
        l2_normalise: Whether vectors have length 1.
        dropout: Share of hidden activations dropped in training.
        batch_norm: Whether hidden layers are batch-normalised.
        shortcut: Whether the id's vector, of length `dim` then, is added behind the dense layers:
            ids that are free to point anywhere learn more than those that share a projection.
    """

    features: tuple[str, ...] = ("item_id", "title", "genres", "year")
    id_dim: int = 128
    token_dim: int = 64
    unknown_rate: float = 0.1
    min_token_count: int = 2
    hidden: tuple[int, ...] = (512, 256)
    dim: int = 128
    l2_normalise: bool = True
    dropout: float = 0.0
    batch_norm: bool = False
    shortcut: bool = False


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
        history: The encoder: `mean`, `recency`, `attention`, `gru`, `transformer`,
            `masked_transformer` or `hstu`.
        history_dim: Length of a past item's vector.
        history_dropout: Share of past events left out in training (`mean`), or of the encoder's
            activations (all others).
        history_power: Exponent of the number of events that the sum is divided by (`mean`).
        history_ratings: Whether events bring their ratings.
        history_length: Most recent events that an encoder which heeds their order reads.
        history_stride: Past that many, so many of the oldest are dropped at once.
        history_content: Whether events bring what their items are beside their ids, by the item
            tower's features; by its weights, too, where `shared` is not `nothing`.
        history_gaps: Whether events bring the time since the one before.
        history_time_told: Whether such an encoder is told the time of the request (`+time`).
        history_half_life: Of `recency`, in events, where learning begins.
        history_layers: Layers of `gru`, blocks of the transformers and `hstu`.
        history_heads: Their heads.
        history_positions: How they tell places: `absolute`, `relative` or `none`; "" for what is
            usual: `relative` in `hstu`, `absolute` in the others.
        history_time_bias: Whether the time between two events is a bias of the transformers'
            attention, as it always is in `hstu`.
        shared: What the towers share: `nothing`; `item_embedding`, where a past item's vector is
            the item tower's for its id (`history_dim` is then that one's length); or `tower`, where
            the dense layers are the item tower's, too, so that a history is encoded as an item
            would be (a siamese network; for towers of `item_id` and a `mean` history alone).
        hidden: Widths of the hidden layers.
        dim: Length of the query's vector; must equal the item tower's.
        l2_normalise: Whether vectors have length 1.
        dropout: Share of hidden activations dropped in training.
        batch_norm: Whether hidden layers are batch-normalised.
        shortcut: Whether the history's vector, of length `dim` then, is added behind the dense
            layers: they then learn what a bag of items does not say.
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
    history_length: int = 200
    history_stride: int = 20
    history_content: bool = False
    history_gaps: bool = False
    history_time_told: bool = False
    history_half_life: float = 20.0
    history_layers: int = 2
    history_heads: int = 2
    history_positions: str = ""
    history_time_bias: bool = False
    shared: str = "nothing"
    hidden: tuple[int, ...] = (512, 256)
    dim: int = 128
    l2_normalise: bool = True
    dropout: float = 0.0
    batch_norm: bool = False
    shortcut: bool = False
