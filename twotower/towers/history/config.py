"""What each history encoder reads, a frozen config for each. Needs no TensorFlow."""

import dataclasses
import math
from typing import Any, ClassVar, Self

from twotower.limits import at_least, typed

POSITIONS = ("absolute", "relative", "none")
# Length of a past item's vector, if neither the config nor shared vectors of ids determine it.
DIM = 256


@dataclasses.dataclass(frozen=True)
class HistoryConfig:
    """What all encoders read.

    Attributes:
        encoder: The history encoder: `mean`, `recency`, `attention`, `gru`, `transformer`,
            `masked_transformer` or `hstu`.
        dim: Length of a past item's vector. By default that of the vectors of ids that the towers
            share, or 256 if they share none.
        dropout: Share of past events left out in training (`mean`), or share of the encoder's
            activations dropped in training (all other encoders).
        ratings: Read the rating of each event; all encoders but `mean` in levels of half a star
            from 0.5 to 5.5.
    """

    # A class attribute, so it cannot be set.
    encoder: str = dataclasses.field(default="", init=False, repr=False)
    dim: int | None = None
    dropout: float = 0.5
    ratings: bool = False

    def __post_init__(self) -> None:
        typed(self)
        if self.dim is not None:
            at_least(self, dim=1)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"a history's dropout must be in [0, 1); got {self.dropout}.")

    def sized(self, shared: int | None = None) -> Self:
        """A copy of the config in which `dim` is a number.

        Args:
            shared: Length of the vectors of ids that the towers share; None if they share none.

        Raises:
            ValueError: A `dim` that is not the length of the shared vectors.

        >>> MeanConfig().sized().dim, MeanConfig().sized(shared=64).dim
        (256, 64)
        """
        if None not in (self.dim, shared) and self.dim != shared:
            raise ValueError(
                f"a history of dim {self.dim} cannot share the item tower's vectors, whose length "
                f"is {shared}. Leave the history's dim (query_history_dim) out, or set "
                f"item_id_dim={self.dim}."
            )
        return dataclasses.replace(self, dim=self.dim or shared or DIM)


@dataclasses.dataclass(frozen=True)
class MeanConfig(HistoryConfig):
    """What `MeanHistory` reads.

    Attributes:
        power: The sum of past items is divided by the number of events to this power, 0 or
            more.
    """

    encoder: str = dataclasses.field(default="mean", init=False, repr=False)
    power: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, power=0)


@dataclasses.dataclass(frozen=True)
class SequenceConfig(HistoryConfig):
    """Fields of all encoders that read events in their order.

    Attributes:
        length: Number of the most recent events that are read.
        stride: If a history gets longer than that, this many of its oldest events are dropped at
            once.
        content: Read the features of past items beside their ids. They are encoded as in the item
            tower; with its weights, if `shared` is not `nothing`.
        gaps: Read the time of each event since the event before it.
        request_time: Read the time of the request, for protocols `+time`: each event then also has
            the time until the next event or the request.
    """

    length: int = 200
    stride: int = 20
    content: bool = False
    gaps: bool = False
    request_time: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1 or not 1 <= self.stride <= self.length:
            raise ValueError(
                f"a history's length must be 1 or more, and its stride from 1 to the length; got "
                f"{self.length} and {self.stride}."
            )


@dataclasses.dataclass(frozen=True)
class RecencyConfig(SequenceConfig):
    """What `RecencyHistory` reads.

    Attributes:
        half_life: Half-life of an event's weight when training starts, in events.
    """

    encoder: str = dataclasses.field(default="recency", init=False, repr=False)
    half_life: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.half_life < math.inf:
            raise ValueError(f"half_life must be positive and finite; got {self.half_life}.")


@dataclasses.dataclass(frozen=True)
class AttentionConfig(SequenceConfig):
    """What `AttentionHistory` reads; it adds no fields."""

    encoder: str = dataclasses.field(default="attention", init=False, repr=False)


@dataclasses.dataclass(frozen=True)
class LayersConfig(SequenceConfig):
    """What the encoders of several layers read.

    Attributes:
        layers: Number of layers, which are blocks in the transformers and `hstu`.
    """

    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, layers=1)


@dataclasses.dataclass(frozen=True)
class GRUConfig(LayersConfig):
    """What `GRUHistory` reads: no more than all encoders of several layers."""

    encoder: str = dataclasses.field(default="gru", init=False, repr=False)


@dataclasses.dataclass(frozen=True)
class BlocksConfig(LayersConfig):
    """What the encoders of several blocks of attention read.

    Attributes:
        heads: Number of attention heads; a divisor of `dim`.
        positions: How positions are encoded: `absolute`, a vector for each position in the window;
            `relative`, a bias of attention for each distance; or `none`. The default of `hstu` is
            `relative`.
    """

    heads: int = 2
    positions: str = "absolute"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, heads=1)
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {POSITIONS}; got {self.positions!r}.")


@dataclasses.dataclass(frozen=True)
class TransformerConfig(BlocksConfig):
    """What `TransformerHistory` reads.

    Attributes:
        time_bias: Add a bias for the time between two events to the attention, in buckets that
            double (after HSTU, whose buckets are finer; Zhai et al., ICML 2024, section 3.1).
            `hstu` always does.
    """

    encoder: str = dataclasses.field(default="transformer", init=False, repr=False)
    time_bias: bool = False


@dataclasses.dataclass(frozen=True)
class MaskedTransformerConfig(TransformerConfig):
    """What `MaskedTransformerHistory` reads: the fields of `TransformerHistory`."""

    encoder: str = dataclasses.field(default="masked_transformer", init=False, repr=False)


@dataclasses.dataclass(frozen=True)
class HSTUConfig(BlocksConfig):
    """What `HSTUHistory` reads: the fields of all encoders of blocks."""

    encoder: str = dataclasses.field(default="hstu", init=False, repr=False)
    positions: str = "relative"
    time_bias: ClassVar[bool] = True


CONFIGS: dict[str, type[HistoryConfig]] = {
    kind.encoder: kind
    for kind in (
        MeanConfig,
        RecencyConfig,
        AttentionConfig,
        GRUConfig,
        TransformerConfig,
        MaskedTransformerConfig,
        HSTUConfig,
    )
}
# Name of a field -> the configs that have it.
READERS: dict[str, list[type[HistoryConfig]]] = {}
for _config in CONFIGS.values():
    for _field in dataclasses.fields(_config):
        READERS.setdefault(_field.name, []).append(_config)


def changed(config: HistoryConfig, **fields: Any) -> HistoryConfig:
    """A config with other values of some fields.

    Args:
        config: Where the other values come from. Another `encoder` takes over those that are set
            and that it reads, too.
        **fields: Name -> value. One that the encoder does not read must have its default value, so
            that a flag file can undo what the file that it includes sets.

    Raises:
        TypeError: A field that no encoder reads.
        ValueError: No such encoder, a field that it does not read, or a value out of its bounds.

    >>> changed(GRUConfig(dim=64, layers=1), encoder="mean", power=1.0, gaps=False)
    MeanConfig(dim=64, dropout=0.5, ratings=False, power=1.0)
    """
    encoder = fields.pop("encoder", config.encoder)
    if encoder not in CONFIGS:
        raise ValueError(f"history must be one of {[*CONFIGS]}; got {encoder!r}.")
    kind = CONFIGS[encoder]
    for name, value in fields.items():
        if name not in READERS:
            raise TypeError(f"no history encoder reads {name!r}; there are {[*READERS]}.")
        readers = READERS[name]
        if kind not in readers and value != getattr(readers[0], name):
            names = ", ".join(reader.encoder for reader in readers)
            raise ValueError(f"history {encoder!r} does not read {name}={value!r}; {names} can.")
    before = dataclasses.asdict(config).items()
    fields = {name: old for name, old in before if old != getattr(type(config), name)} | fields
    return kind(**{name: value for name, value in fields.items() if kind in READERS[name]})
