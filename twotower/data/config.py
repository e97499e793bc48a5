"""ExamplesConfig: how training rows become batches; without pandas."""

import dataclasses

from twotower.limits import at_least


@dataclasses.dataclass(frozen=True)
class ExamplesConfig:
    """How training rows become batches.

    Attributes:
        batch_size: Examples in a batch, but for queries with several of them, which are never cut
            in two (and the last batch of an epoch is smaller).
        targets_per_query: Items of one user that share a query, where the protocol's histories
            are `others`: the query then sees the user's rows but those of these items. 1 leaves
            out the example's own item alone. Larger shares the query tower's work; with histories
            `before` each example has a query of its own.
        targets_share: The same as a share of the user's rows, where that is more: a query then asks
            for a like part of a long history and of a short one (Mult-DAE, Liang et al., WWW 2018,
            asks for all of it at once), and an epoch has a few queries a user, whoever it is.
        targets_share_spread: By how much a user's share of an epoch may lie below or above: the
            tower then sees thick and thin histories of the same user.
        max_history: Most recent events a query sees in training; 0 for all. An encoder that has no
            window of its own (`mean`) is asked with all of them.
        sequence_length: Queries of a window of a user's events that are encoded at once
            (`sequences.py`); 0 for a history of its own for each query.
        hidden_share: Share of a window's events that are asked for, for encoders that are not
            causal.
        stratify: Power a of stratified sampling, the alternative to log-Q: an epoch draws as many
            examples as there are, those of an item with share p_c in proportion to p_c ** -a, so
            that popular items are columns less often (a = 1: all items equally often). Each draw
            is a query of its own, so that those of an example come into different batches, and
            what is drawn more often weighs less, so that the loss has the same positives. 0 for
            each example once.
        weight: Column of `interactions` that weighs an example (`value`, `rating`); "" for 1. It
            is divided by its mean; a missing value counts as that mean.
        seed: Order of the examples.
    """

    batch_size: int = 4096
    targets_per_query: int = 8
    targets_share: float = 0.0
    targets_share_spread: float = 0.0
    max_history: int = 0
    sequence_length: int = 0
    hidden_share: float = 0.2
    stratify: float = 0.0
    weight: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(
            self, batch_size=1, targets_per_query=1, max_history=0, sequence_length=0, stratify=0
        )
        share, spread = self.targets_share, self.targets_share_spread
        if not 0 <= spread <= share or share + spread >= 1:
            raise ValueError(
                f"targets_share must lie in [0, 1), with targets_share_spread both ways; got "
                f"{share} and {spread}."
            )
        if not 0 < self.hidden_share < 1:
            raise ValueError(f"hidden_share must lie between 0 and 1; got {self.hidden_share}.")
