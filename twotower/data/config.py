"""ExamplesConfig: how training rows become batches. Needs no pandas."""

import dataclasses

from twotower.limits import at_least, typed

# Inputs of the item tower that depend on the time, so that an item's row does not have them.
TIME_DEPENDENT = ("age", "popularity")


@dataclasses.dataclass(frozen=True)
class ExamplesConfig:
    """How training rows become batches.

    Attributes:
        batch_size: Examples in a batch. A query with several examples is not cut in two, so a batch
            can have a few more or fewer. The last batch of an epoch is smaller.
        targets_per_query: How many items of a user share a query, if the protocol's histories are
            `others`. The query then reads the user's other rows. With more items there are fewer
            queries to encode. With histories `before` each example has a separate query.
        targets_share: The number of items that share a query, as a share of the user's rows, if
            that is more than `targets_per_query`. Every user then has about the same number of
            queries in an epoch (Mult-DAE, Liang et al., WWW 2018, has one query for each user).
        targets_share_spread: By how much `targets_share` may differ from user to user and from
            epoch to epoch, up or down, so that the tower reads histories of different lengths.
        max_history: Number of the most recent events that a query reads in training; 0 for all. In
            serving `mean` reads the whole history, and other encoders their window.
        sequence_length: Number of queries in a window of a user's events, which are encoded
            together (`sequences.py`); 0 to encode the history of each query separately.
        hidden_share: Share of a window's events that are hidden and predicted, for encoders that
            are not causal (`masked_transformer`).
        stratify: Power a of stratified sampling, the alternative to log-Q; 0 to take each example
            once. An epoch draws as many examples as there are, an example of item c in proportion
            to p_c ** -a, where p_c is the item's share of the examples. Popular items are then
            columns less often; with a = 1 all items equally often. Each draw is a separate query,
            so that the draws of an example come into different batches. An example that is drawn
            more often weighs less, so that positives count as before.
        weight: Column of `interactions` that weighs an example (`value`, `rating`); "" for 1. It
            is divided by its mean, and a missing value counts as the mean.
        seed: Seed of the order of the examples.

    >>> ExamplesConfig(batch_size=64).targets_per_query
    8
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
        typed(self)
        at_least(
            self, batch_size=1, targets_per_query=1, max_history=0, sequence_length=0, stratify=0
        )
        at_least(self, seed=0)
        share, spread = self.targets_share, self.targets_share_spread
        if not 0 <= spread <= share or share + spread >= 1:
            raise ValueError(
                f"targets_share must lie in [0, 1), with targets_share_spread both ways; got "
                f"{share} and {spread}."
            )
        if not 0 < self.hidden_share < 1:
            raise ValueError(f"hidden_share must lie between 0 and 1; got {self.hidden_share}.")
