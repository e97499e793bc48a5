"""Tags of items, such as genres, as a table."""

from collections.abc import Iterable, Sequence

import numpy as np


def tag_table(tags: Iterable[Sequence[str]]) -> np.ndarray:
    """Which tags each item has, `[num_items, num_tags]` bool; the tags in alphabetical order.

    >>> tag_table([("b", "a"), (), ("b",)]).astype(int).tolist()
    [[1, 1], [0, 0], [0, 1]]
    """
    tags = [*tags]
    names = {name: column for column, name in enumerate(sorted({t for row in tags for t in row}))}
    table = np.zeros((len(tags), len(names)), bool)
    for row, some in enumerate(tags):
        table[row, [names[name] for name in some]] = True
    return table
