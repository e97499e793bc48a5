"""Segments: the queries that are hard to recommend for, and how well they are answered.

    new_users     queries of users with fewer than 10 training rows, unknown users among them
    niche_users   the fifth of the queries whose history has the least popular items, by the mean
                  number of training rows of an item; none without a history
    cold_items    queries with a target that has fewer than 10 training rows

Of the `cold_items` only such targets count: the query's other targets are in its list like items
that nobody asked for.

Compare recommenders within a segment rather than segments: a long history has less popular items on
average, so niche users have many targets, and figures of many targets differ from those of few.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.data.splits import Split
from twotower.evaluation import intervals, metrics
from twotower.evaluation.comparison import shown
from twotower.evaluation.evaluate import Report
from twotower.evaluation.metrics import TargetRanks

NEW_BELOW = 10  # training rows of a user
COLD_BELOW = 10  # training rows of an item
NICHE_SHARE = 0.2
FIGURES = ("ndcg@10", "recall@500")


def user_counts(dataset: Dataset, split: Split) -> np.ndarray:
    """Training rows of the user of each case, `[num_cases]` int64; 0 for unknown users."""
    counts = np.bincount(dataset.user_rows[split.train], minlength=len(dataset.users))
    by_id = dict(zip(dataset.users["user_id"], counts))
    return np.array([by_id.get(user, 0) for user in split.cases.user_id], np.int64)


def segments(
    cases: EvalCases, user_counts: np.ndarray, item_counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Which targets count in each segment. A query is in a segment if any of its targets counts.

    Args:
        cases: The queries.
        user_counts: `[num_cases]` training rows of the user of each.
        item_counts: `[num_items]` training rows of each item.

    Returns:
        Name of a segment -> `[num_targets]` bool.
    """
    history, query = cases.history, cases.targets.row_index
    rows = np.bincount(history.row_index, item_counts[history.values], len(cases))
    popularity = rows / np.maximum(history.lengths, 1)
    known = history.lengths > 0
    # If all are alike, nobody is below the quantile.
    bound = np.quantile(popularity[known], NICHE_SHARE) if known.any() else 0.0
    return {
        "new_users": (user_counts < NEW_BELOW)[query],
        "niche_users": (known & (popularity < bound))[query],
        "cold_items": item_counts[cases.targets.values] < COLD_BELOW,
    }


def by_segment(
    report: Report, others: Mapping[str, Report], dataset: Dataset, split: Split
) -> dict:
    """NDCG@10 and recall@500 by segment; JSON-ready, and a few numbers.

    Args:
        report: Of a recommender, such as a funnel, on the cases of the split.
        others: Reports of others on the same cases, such as the sources of the funnel.
        dataset: The data.
        split: The split; its training rows count.

    Returns:
        Name of a segment -> `num_cases`, its number of queries, and unless that is 0: `ndcg@10` and
        `recall@500` with their 95% intervals, and `others`, name -> the means of these.

    Raises:
        ValueError: A split of another dataset.
    """
    item_counts = split.counts_in(dataset)
    found: dict[str, dict] = {}
    chosen = segments(split.cases, user_counts(dataset, split), item_counts)
    for name, counts in chosen.items():
        ranks, cases = report.ranks.only(counts)
        found[name] = {"num_cases": len(cases)}
        if len(cases):
            users = report.clusters[cases]
            found[name] |= {
                figure: intervals.share_interval(values, clusters=users)
                for figure, values in _values(ranks).items()
            }
            found[name]["others"] = {
                other: {
                    figure: float(values.mean())
                    for figure, values in _values(of_other.ranks.only(counts)[0]).items()
                }
                for other, of_other in others.items()
            }
    return found


def _values(ranks: TargetRanks) -> dict[str, np.ndarray]:
    """The figures of each case, name -> `[num_cases]`."""
    values = metrics.ndcg(ranks, 10), metrics.recall(ranks, 500)
    return dict(zip(FIGURES, values))


def table(found: Mapping[str, Mapping], name: str) -> str:
    """What `by_segment` returns as text: a line for each segment and figure.

    Args:
        found: The figures.
        name: What the recommender is called.
    """
    others: Iterable[str] = next((row["others"] for row in found.values() if "others" in row), ())
    widths = {other: max(9, len(other)) + 2 for other in others}
    head = f"{'by segment':14s}{'queries':>9s}  {'':10s}{name:>17s}"
    lines = [head + "".join(f"{other:>{width}}" for other, width in widths.items())]
    for segment, row in found.items():
        label = f"{segment:14s}{row['num_cases']:9,d}"
        if not row["num_cases"]:
            lines.append(label)
        for figure in FIGURES if row["num_cases"] else ():
            means = (row["others"][other][figure] for other in others)
            cells = "".join(f"{mean:{w}.4f}" for mean, w in zip(means, widths.values()))
            lines.append(f"{label}  {figure:10s}{shown(row[figure]):>17s}{cells}")
            label = " " * len(label)
    return "\n".join(lines)
