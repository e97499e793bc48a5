"""What an answer says of its items: columns of the catalogue, and on request why each is there."""

import functools
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.bundle.bundle import Bundle
from twotower.bundle.recommendations import nearest
from twotower.data.catalogue import Catalogue
from twotower.funnel.answer import Answer

SHOWN = ("item_id", "title", "genres", "year")


class Cards:
    """Of each item what a page shows: id, title, genres and year, as far as they are known.

    >>> import pandas as pd
    >>> items = pd.DataFrame({"item_id": ["7"], "title": ["Up"], "year": [2009.0]})
    >>> Cards(Catalogue(items)).of(np.array([0]))
    [{'item_id': '7', 'title': 'Up', 'year': 2009}]
    """

    def __init__(self, catalogue: Catalogue) -> None:
        names = [name for name in SHOWN if name in catalogue.items]
        self._columns = {name: catalogue.items[name].to_numpy(object) for name in names}
        self._titles = self._columns.get("title", self._columns["item_id"])

    @functools.cached_property
    def _words(self) -> list[str]:
        """Titles as they are searched."""
        return [_folded(title) if isinstance(title, str) else "" for title in self._titles]

    def search(self, text: str, k: int, without: np.ndarray) -> np.ndarray:
        """Keys of at most `k` items whose titles contain all words of a text.

        Titles in which each of these words begins a word come first, and short ones before long
        ones. For an empty text the catalogue's first items are found.

        Args:
            text: Words; case and accents do not matter.
            k: Most items to find.
            without: Keys of items that are not to be found.

        >>> import pandas as pd
        >>> items = pd.DataFrame({"item_id": ["7", "8"], "title": ["Heat and Dust", "HEAT"]})
        >>> Cards(Catalogue(items)).search("h\u00e9at", 5, np.array([])).tolist()
        [1, 0]
        """
        words, hidden = _folded(text).split(), {*without.tolist()}
        found = [
            key
            for key, title in enumerate(self._words)
            if key not in hidden and all(word in title for word in words)
        ]
        if words:
            found.sort(key=lambda key: (_inside(words, self._words[key]), len(self._words[key])))
        return np.array(found[:k], np.int64)

    def of(self, keys: np.ndarray) -> list[dict[str, Any]]:
        """A dictionary for each of the items `keys` `[n]`."""
        columns = {name: values[keys].tolist() for name, values in self._columns.items()}
        return [
            {name: _plain(value) for name, value in zip(columns, values)}
            for values in zip(*columns.values())
        ]


def _inside(words: list[str], title: str) -> int:
    """Number of words that no word of a title begins with."""
    return sum(f" {word}" not in f" {title}" for word in words)


def _folded(text: str) -> str:
    """Without case and accents."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(part for part in parts if not unicodedata.combining(part)).casefold()


def _plain(value: Any) -> Any:
    """A value of the catalogue as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, float):
        return None if np.isnan(value) else int(value) if value.is_integer() else value
    return value


def explained(
    answer: Answer,
    place: int,
    keys: np.ndarray,
    liked: np.ndarray,
    bundle: Bundle,
    catalogue: Catalogue,
    items: list[dict[str, Any]],
    seconds: float,
) -> Mapping[str, Any]:
    """Adds `sources` and `because` to the items, and returns what the funnel's steps did.

    Args:
        answer: Of the batch.
        place: The request's row in it.
        keys: `[num_answered]` keys of the items.
        liked: Keys of the history.
        bundle: With the vectors of its items.
        catalogue: Converts keys to ids.
        items: The answered items.
        seconds: How long the batch took.
    """
    has_vector = np.isin(keys, bundle.keys)
    because = iter(nearest(catalogue, bundle.keys, bundle.vectors, keys[has_vector], liked))
    columns = answer.candidates.columns
    names = [name.removesuffix("_rank") for name in columns if name.endswith("_rank")]
    for number, item in enumerate(items):
        item["sources"] = {
            name: {
                "rank": int(columns[f"{name}_rank"][place, number]),
                "score": round(float(columns[f"{name}_score"][place, number]), 6),
            }
            for name in names
            if columns[f"{name}_rank"][place, number] > 0
        }
        item["because"] = next(because) if has_vector[number] else ""
    return {
        "stages": [
            {
                "name": step.name,
                "candidates": int(step.candidates.counts[place]),
                "ms": round(1e3 * step.seconds, 3),
                "lost": dict(step.lost),
            }
            for step in answer.steps
        ],
        "batch": {"requests": len(answer.candidates), "ms": round(1e3 * seconds, 3)},
        "relaxed": answer.relaxed,
        "fallback": bool(len(keys)) and not answer.steps[-1].candidates.counts[place],
    }
