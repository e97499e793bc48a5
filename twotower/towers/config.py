"""ItemConfig and QueryConfig: what the towers read, and their sizes. Needs no TensorFlow."""

import dataclasses

# Features of an item that depend on the time, so that its row alone does not have them.
TIME_DEPENDENT = ("age", "popularity")


@dataclasses.dataclass(frozen=True)
class ItemConfig:
    """What the item tower reads, and its sizes.

    Attributes:
        features: Columns of `Dataset.items`. Also `age` (days from `released`, or from the item's
            first training row, to the time of the example) and `popularity` (log of the item's
            share of the training rows before that time); these two need in-batch negatives.
        id_dim: Length of the item id's vector.
        token_dim: Length of the vector of a title, description, set of genres or maker.
        unknown_rate: Share of training items whose id is hidden (see `Id`).
        min_token_count: A word has a vector if at least this many items have it.
        hidden: Widths of the hidden layers.
        dim: Length of the item's vector; must equal the query tower's.
        l2_normalise: Whether vectors have length 1.
        dropout: Share of hidden activations dropped in training.
        batch_norm: Whether hidden layers are batch-normalised.
        shortcut: Add the id's vector to the output of the dense layers. `id_dim` must equal `dim`.
            An id can then move the item anywhere, without a projection that all ids share.
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
        features: `history`, `time` (hour and weekday of the request), `search_text`, `device`,
            `country`, and columns of `Dataset.users` (`user_id`, demographics). The default is the
            history alone. On MovieLens 1M a user id beside it memorises the training rows and costs
            recall; and a tower without user ids also serves users who are new.
        user_dim: Length of the user id's vector.
        category_dim: Length of the vector of a demographic, a device, an hour or a weekday; a
            search text has four times this length.
        unknown_rate: Share of training queries whose user id is hidden, so that the vector of
            unknown users is trained.
        history: The encoder: `mean`, `recency`, `attention`, `gru`, `transformer`,
            `masked_transformer` or `hstu`.
        history_dim: Length of a past item's vector.
        history_dropout: Share of past events left out in training (`mean`), or of the encoder's
            activations dropped in training (all other encoders).
        history_power: `mean` divides the sum of past items by the number of events to this power.
        history_ratings: Read the rating of each event.
        history_length: Number of the most recent events that are read by an encoder which reads the
            order of events (all but `mean`).
        history_stride: If a history gets longer than that, this many of its oldest events are
            dropped at once.
        history_content: Read the features of past items beside their ids. They are encoded as in
            the item tower; with its weights, if `shared` is not `nothing`.
        history_gaps: Read the time of each event since the event before it.
        history_request_time: Read the time of the request, for protocols `+time`: each event then
            also has the time until the next event or the request.
        history_half_life: Half-life of `recency` when training starts, in events.
        history_layers: Number of layers of `gru`, and of blocks of the transformers and `hstu`.
        history_heads: Number of attention heads of the transformers and `hstu`.
        history_positions: How the transformers and `hstu` encode positions: `absolute`, `relative`
            or `none`. The default "" is `relative` for `hstu` and `absolute` for the others.
        history_time_bias: Add a bias for the time between two events to the attention of the
            transformers. `hstu` always does.
        shared: What the towers share. `nothing`; `item_embedding`: a past item's vector is the item
            tower's vector of its id, and `history_dim` is its length; or `tower`: the dense layers
            are shared, too, so that a history is encoded as an item is (a siamese network; only for
            towers with the features `item_id` and a `mean` history).
        hidden: Widths of the hidden layers.
        dim: Length of the query's vector; must equal the item tower's.
        l2_normalise: Whether vectors have length 1.
        dropout: Share of hidden activations dropped in training.
        batch_norm: Whether hidden layers are batch-normalised.
        shortcut: Add the history's vector to the output of the dense layers, which then learn only
            what the history's vector lacks. `history_dim` must equal `dim`.
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
    history_request_time: bool = False
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
