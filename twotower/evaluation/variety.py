"""Variety: novelty and diversity of recommended lists."""

import numpy as np

from twotower.data.dataset import Dataset
from twotower.data.splits import Split
from twotower.data.tags import tag_table
from twotower.evaluation import intervals, metrics

# Metrics of `variety`.
VARIETY = ("novelty@10", "genre_distance@10")


def variety(keys: np.ndarray, dataset: Dataset, split: Split) -> dict[str, dict]:
    """Novelty and diversity of the first ten items, with intervals.

    Args:
        keys: `[num_cases, 10]` the recommended items, best first, -1 past the end.
        dataset: The data; without genres there is no distance.
        split: Its training rows give the popularity of an item.

    Returns:
        `novelty@10`: mean over items of -log2 of the share of users who have the item (Zhou et al.,
        PNAS 2010). `genre_distance@10`: mean over pairs of 1 - |common genres| / |genres of either|
        (intra-list distance: Ziegler et al., WWW 2005, with Jaccard's distance).

    Raises:
        ValueError: A split of another dataset.
    """
    counts = split.counts_in(dataset)
    users = len(np.unique(dataset.user_rows[split.train]))
    found = {"novelty@10": metrics.novelty(keys, counts / users, 10)}
    if "genres" in dataset.items:
        tags = tag_table(dataset.items["genres"])
        found["genre_distance@10"] = metrics.tag_distance(keys, tags, 10)
    return {name: intervals.interval(values) for name, values in found.items()}
