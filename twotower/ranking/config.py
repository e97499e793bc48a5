"""RankerConfig: which network ranks, and its sizes. Needs no TensorFlow."""

import dataclasses

from twotower.limits import at_least, refuse, typed, unread

INTERACTIONS = ("dcn", "deepfm", "dlrm", "mlp")
TASKS = ("shared_bottom", "mmoe", "ple")


@dataclasses.dataclass(frozen=True)
class RankerConfig:
    """Which network ranks, and its sizes.

    Attributes:
        interaction: How features interact. `dcn`: cross layers beside dense layers (DCN-v2, Wang et
            al., WWW 2021, parallel structure); `deepfm`: a factorisation machine beside dense
            layers (Guo et al., IJCAI 2017); `dlrm`: dense layers over all dot products (Naumov et
            al., 2019); `mlp`: dense layers alone.
        dim: Length of the embedding of a categorical value.
        hidden: Widths of the dense layers.
        cross_layers: Number of cross layers.
        cross_rank: Rank of the cross layers' matrices; 0 for full matrices.
        dropout: Share of hidden activations dropped in training.
        batch_norm: Whether the dense layers are batch-normalised.
        l2: Weight of the L2 penalty on the embeddings. The model has it in `losses`: Keras' `fit`
            adds it to the loss, and a training loop of your own must do so.
        tasks: The layers between the interaction and the heads. `shared_bottom`: the same dense
            layers for all heads; `mmoe`: experts that each head mixes (Ma et al., KDD 2018); `ple`:
            shared experts, and experts of one head each (Tang et al., RecSys 2020).
        expert_hidden: Widths of the dense layers of an expert, or of the shared bottom. With () the
            heads of a shared bottom read the output of the interaction.
        experts: Number of experts; with `ple`, of the shared ones, and of each head's.
        levels: Number of layers of experts.
        positions: Number of positions in a list whose effect on the labels is learned, for use in
            training only (see position.py); 0 for none.
        position_dropout: Share of training rows whose position is hidden.

    Raises:
        ValueError: An unknown name, a size out of range, or a setting that nothing reads.

    >>> RankerConfig("mlp", cross_rank=8)
    Traceback (most recent call last):
    ValueError: cross_rank=8 has no effect without interaction='dcn'. Leave it out.
    """

    interaction: str = "dcn"
    dim: int = 16
    hidden: tuple[int, ...] = (256, 256)
    cross_layers: int = 2
    cross_rank: int = 0
    dropout: float = 0.2
    batch_norm: bool = False
    l2: float = 1e-6
    tasks: str = "shared_bottom"
    expert_hidden: tuple[int, ...] = ()
    experts: int = 4
    levels: int = 1
    positions: int = 0
    position_dropout: float = 0.0

    def __post_init__(self) -> None:
        typed(self)
        for name, choices in (("interaction", INTERACTIONS), ("tasks", TASKS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; one of {', '.join(choices)}."
                )
        at_least(self, dim=1, cross_layers=1, cross_rank=0, l2=0, experts=1, levels=1, positions=0)
        for name in ("hidden", "expert_hidden"):
            if any(not isinstance(width, int) or width < 1 for width in getattr(self, name)):
                raise ValueError(
                    f"{name} must hold widths of 1 or more; got {getattr(self, name)}."
                )
        for name in ("dropout", "position_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1); got {getattr(self, name)}.")
        if not self.hidden and self.interaction in ("mlp", "dlrm"):
            raise ValueError(f"{self.interaction} needs hidden layers; got none.")
        if self.tasks != "shared_bottom" and not self.expert_hidden:
            raise ValueError(f"{self.tasks} needs expert_hidden, the widths of an expert.")
        is_dcn, has_experts = self.interaction == "dcn", self.tasks != "shared_bottom"
        refuse(
            [
                *unread(self, is_dcn, "interaction='dcn'", "cross_layers", "cross_rank"),
                *unread(self, has_experts, "tasks='mmoe' or 'ple'", "experts"),
                *unread(self, self.tasks == "ple", "tasks='ple'", "levels"),
                *unread(self, self.positions > 0, "positions", "position_dropout"),
            ]
        )
