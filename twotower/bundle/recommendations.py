"""Recommendations: the answer to one person, with what a page shows of each item."""

import dataclasses
from typing import Any, Self

import numpy as np
import pandas as pd

from twotower.bundle.exported_model import ExportedModel
from twotower.data.catalogue import Catalogue
from twotower.retrieval.candidates import Candidates


@dataclasses.dataclass(frozen=True)
class Recommendations:
    """Items for one person, best first; prints as a table.

    Attributes:
        table: A row for each item: `item_id`, `score` (inner product, larger is better), `because`
            (id of the item of the history whose vector is nearest; "" without a history), and the
            columns of the catalogue.
        history: The same columns, without scores, for what the person liked, oldest first.

    >>> table = pd.DataFrame({"item_id": ["7"], "score": [0.5], "because": [""], "title": ["Up"]})
    >>> print(Recommendations(table, table.iloc[:0]))
      1   0.5000        7  Up
    """

    table: pd.DataFrame
    history: pd.DataFrame

    @classmethod
    def of(cls, model: ExportedModel, found: Candidates, liked: np.ndarray) -> Self:
        """Recommendations from what a search found for one person.

        Args:
            model: The model whose vectors were searched.
            found: What the search returned, one row.
            liked: `[num_liked]` keys of the history, oldest first.
        """
        items, keys = model.catalogue.items, found.keys[0, : found.counts[0]]
        table = items.iloc[keys].reset_index(drop=True)
        scores = found.scores[0, : len(keys)].astype(float)
        because = nearest(model.catalogue, model.keys, model.vectors, keys, liked)
        return cls(table.assign(score=scores, because=because), items.iloc[liked])

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ids(self) -> list[str]:
        """Ids of the items."""
        return self.table["item_id"].to_list()

    @property
    def titles(self) -> list[str]:
        """Titles of the items, or their ids in a catalogue without titles."""
        return self.table["title" if "title" in self.table else "item_id"].to_list()

    @property
    def scores(self) -> list[float]:
        """Scores of the items, descending."""
        return self.table["score"].to_list()

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary for each item, as JSON: `item_id`, `score`, `because`, title, genres,
        year."""
        names = [n for n in ("title", "genres", "year") if n in self.table]
        rows = []
        for _, item in self.table.iterrows():
            row = {"item_id": item["item_id"], "score": round(item["score"], 4)}
            row |= {name: _plain(item[name]) for name in names}
            rows.append(row | ({"because": item["because"]} if item["because"] else {}))
        return rows

    def __str__(self) -> str:
        names = dict(zip(self.history["item_id"], described(self.history)))
        lines = []
        texts = described(self.table)
        width = max(map(len, texts), default=0)
        because = [names.get(item, "") for item in self.table["because"]]
        for rank, (item, score, text, near) in enumerate(
            zip(self.ids, self.scores, texts, because), 1
        ):
            line = f"{rank:3d}  {score:7.4f}  {item:>7s}  {text:{width}s}"
            lines.append((line + (f"  near {near.partition('  ')[0]}" if near else "")).rstrip())
        return "\n".join(lines)


def described(items: pd.DataFrame) -> list[str]:
    """Title, year and genres of each item, as far as the catalogue has them."""
    texts = []
    for _, item in items.iterrows():
        title, year = item.get("title", ""), _plain(item.get("year"))
        if year is not None and f"({year})" not in title:
            title = f"{title} ({year})".strip()
        texts.append("  ".join(filter(None, [title, ", ".join(item.get("genres", ()))])))
    return texts


def _plain(value: Any) -> Any:
    """A value of the catalogue as JSON has it: whole years, None for NaN, lists for tuples."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else int(value) if value == int(value) else float(value)
    return value


def nearest(
    catalogue: Catalogue,
    keys: np.ndarray,
    vectors: np.ndarray,
    found: np.ndarray,
    liked: np.ndarray,
) -> list[str]:
    """For each found item the id of the liked one with the nearest vector; "" where there is none.

    Args:
        catalogue: Converts keys to ids.
        keys: `[num_items]` ascending, keys of the rows of `vectors`.
        vectors: `[num_items, dim]`.
        found: `[k]` keys, all of them in `keys`.
        liked: `[num_liked]` keys; those without a vector are left out.
    """
    liked = liked[np.isin(liked, keys)]
    if not len(liked):
        return [""] * len(found)
    rows = [vectors[np.searchsorted(keys, some)] for some in (found, liked)]
    return catalogue.ids_of(liked[np.argmax(rows[0] @ rows[1].T, axis=1)]).tolist()
