"""Comparison: several recommenders side by side, as a table for a terminal."""

import dataclasses
from collections.abc import Mapping, Sequence

from twotower.data.splits import Split

# A few figures that say most: how many choices are found, how far up, and how much is shown.
SHOWN = ("recall_micro@100", "recall@500", "hit_rate@50", "ndcg@10", "mrr@500", "coverage@100")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Metrics of several recommenders on the same questions; prints as a table.

    Attributes:
        title: What was asked of whom.
        rows: Name of a recommender -> its metrics, as `Report.metrics` has them.

    >>> share = {"mean": 0.25, "low": 0.2, "high": 0.3}
    >>> print(Comparison("loo, test", {"popularity": {"ndcg@10": share}}))
    loo, test
                                 popularity
    ndcg@10                0.2500 ±  0.0500
    """

    title: str
    rows: Mapping[str, Mapping[str, dict]]

    def __str__(self) -> str:
        return self.table(SHOWN)

    def table(self, metrics: Sequence[str] | None = None, sign: str = "") -> str:
        """One line for each metric, one column for each recommender: the mean and half its 95%
        interval.

        Args:
            metrics: Names, of which those that were not computed are left out; all by default.
            sign: `+` for differences, which show their sign.
        """
        first = next(iter(self.rows.values()))
        widths = {name: max(17, len(name)) + 2 for name in self.rows}
        lines = [" " * 20 + "".join(f"{name:>{width}}" for name, width in widths.items())]
        for metric in first if metrics is None else metrics:
            if metric in first:
                cells = [shown(row[metric], sign) for row in self.rows.values()]
                cells = [f"{cell:>{width}}" for cell, width in zip(cells, widths.values())]
                lines.append(f"{metric:20s}" + "".join(cells))
        return "\n".join([self.title, *lines])


def shown(value: Mapping, sign: str = "") -> str:
    """A mean and half the width of its 95% interval, if it has one."""
    digits = 4 if abs(value["mean"]) < 10 else 1
    mean = f"{value['mean']:{sign}.{digits}f}"
    if value["low"] is None:
        return mean
    return f"{mean} ± {(value['high'] - value['low']) / 2:7.{digits}f}"


def heading(split: Split) -> str:
    """What a split asks, in one line."""
    seen = "seen items excluded" if split.seen_excluded else "seen items not excluded"
    return (
        f"{split.protocol}, {split.part}: {len(split.cases):,} questions, "
        f"{len(split.candidates):,} items to choose from, {seen}"
    )
