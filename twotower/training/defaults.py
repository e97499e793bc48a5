"""A recipe that fits the data: features from its columns, sizes from its number of rows."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from twotower.data.columns import form_of, known
from twotower.data.config import TIME_DEPENDENT
from twotower.data.dataset import Dataset
from twotower.data.inputs import require_features
from twotower.data.splits import Split
from twotower.objective.config import NegativesConfig
from twotower.towers.config import is_argument
from twotower.training.recipe import Recipe

# These features come first, in this order: a change of order would change MovieLens' results.
FIRST = ("item_id", "title", "description", "genres", "maker", "year")
# Steps of an epoch over few rows, reached by smaller batches.
FEWEST_STEPS = 16
SMALLEST_BATCH = 16
# Epochs over few rows, at most: a step is cheap, and early stopping ends the training.
EPOCHS_OF_FEW_ROWS = 30
# Largest catalogue of which a step on few rows computes all vectors.
SMALL_CATALOGUE = 10_000
# Memory of an event in a batch that is padded to its longest history. Measured over a training of
# 20,000 events of one user: 1.9 GB for 1,024 queries.
BYTES_OF_EVENT = 100
# Above this `describe` says how much memory a batch of histories takes.
LARGE_BATCH = 1_000_000_000


def recipe_for(dataset: Dataset, split: Split, **choices: Any) -> Recipe:
    """The recipe to begin with on a dataset.

    With 65,536 training rows or more it is `Recipe()` with the item features of the data. With
    fewer rows, a batch is about a sixteenth of them, so that an epoch still has several steps, and
    there are more epochs. Such a batch has few items, so the negatives are the whole catalogue, or
    for a large catalogue items drawn from it beside the batch. If the interactions have a column
    `weight`, it weighs the examples.

    Args:
        dataset: The data.
        split: Only its training rows and their items are looked at.
        **choices: Choices of `Recipe` that replace those of the data (`epochs=4`).

    Returns:
        A recipe with features that the training rows have values for.

    Raises:
        ValueError: A split of another dataset, or a feature that the data do not have.
    """
    split.require_of(dataset)
    recipe = Recipe()
    features, _ = item_features(dataset, split)
    examples, fit, negatives, task = recipe.examples, recipe.fit, recipe.negatives, recipe.task
    if "weight" in dataset.interactions and known(dataset.interactions["weight"]).any():
        examples = dataclasses.replace(examples, weight="weight")
    num_rows, num_items = len(split.train), len(np.unique(dataset.item_keys[split.train]))
    if num_rows < FEWEST_STEPS * examples.batch_size:
        size = 2 ** int(np.log2(max(num_rows // FEWEST_STEPS, SMALLEST_BATCH)))
        examples = dataclasses.replace(examples, batch_size=min(size, num_rows))
        fit = dataclasses.replace(fit, epochs=EPOCHS_OF_FEW_ROWS)
        if num_items > SMALL_CATALOGUE:
            negatives = NegativesConfig(("batch", "uniform"))
        else:  # nothing is drawn, so nothing is corrected
            negatives = NegativesConfig(("catalogue",))
            task = dataclasses.replace(task, correction="none")
    item = dataclasses.replace(recipe.item, features=features)
    parts = {"item": item, "examples": examples, "task": task, "negatives": negatives, "fit": fit}
    recipe = Recipe(**{**parts, **choices})
    require_features(dataset, recipe.query.features, recipe.item.features)
    return recipe


def item_features(dataset: Dataset, split: Split) -> tuple[tuple[str, ...], dict[str, str]]:
    """The columns of items that can be features, since their values differ from item to item.

    Returns:
        (names of these columns; name -> reason for each column that is left out).
    """
    items = dataset.items.iloc[np.unique(dataset.item_keys[split.train])]
    ordered = [name for name in FIRST if name in items]
    ordered += [name for name in items if name not in FIRST]
    left_out = {name: _fault(items[name], items["item_id"]) for name in ordered}
    taken = {"item_id"}
    for name in ordered[1:]:
        if not left_out[name] and name.lower() in taken:
            left_out[name] = "the name of another column but for capitals; rename it"
        elif not left_out[name]:
            taken.add(name.lower())
    features = tuple(name for name in ordered if not left_out[name])
    return features, {name: why for name, why in left_out.items() if why}


def _fault(values: pd.Series, ids: pd.Series) -> str:
    """The reason why a column of the training items is not made a feature; "" if it is one."""
    name = str(values.name)
    if name == "item_id":
        return ""
    if name in TIME_DEPENDENT:
        return "the name of what is computed from the interactions; rename it"
    if name == "released":
        return "a time; ask for the feature age"
    if not is_argument(name):
        return "a name that no SavedModel's input can have; rename it"
    if not known(values).any():
        return "nothing is known"
    form = form_of(values)
    if form in ("tags", "vector"):
        return ""
    distinct = values[known(values)].astype(np.float32 if form == "number" else object).nunique()
    if distinct < 2:
        return "the same for all"
    if form == "text" and name == "title":
        return "ids, no titles" if (values == ids).all() else ""
    if form == "text" and name != "description" and 2 * distinct > len(values):
        return "almost a value for each item"
    return ""


def describe(dataset: Dataset, split: Split, recipe: Recipe) -> str:
    """Lines of text: the features that a recipe reads, the columns that it does not, its sizes."""
    _, why = item_features(dataset, split)
    query, item = recipe.query.features, recipe.item.features
    unread = [f"{name} ({why.get(name, 'not asked for')})" for name in dataset.items]
    unread = [text for name, text in zip(dataset.items, unread, strict=True) if name not in item]
    of_users = [name for name in dataset.users if name not in query]
    lines = [
        f"query tower reads {', '.join(query)}"
        + (f"; not {', '.join(of_users)} (--query_features)" if of_users else ""),
        f"item tower reads {', '.join(item)}"
        + (f"; not {', '.join(unread)} (--item_features)" if unread else ""),
        f"at most {recipe.fit.epochs} epochs of {len(split.train):,} rows in batches of "
        f"{recipe.examples.batch_size:,}, negatives: {', '.join(recipe.negatives.negatives)}",
        *_weights(dataset, split, recipe),
        *_memory(dataset, split, recipe),
    ]
    return "\n".join(lines)


def _weights(dataset: Dataset, split: Split, recipe: Recipe) -> list[str]:
    """A line that names the column of weights: it may be in the file for another reason."""
    name = recipe.examples.weight
    if not name:
        return []
    weights = dataset.interactions[name].to_numpy(np.float64)[split.train]
    lowest, highest = np.nanmin(weights), np.nanmax(weights)
    return [f"examples weigh {lowest:,g} to {highest:,g}, by {name} (--weight= for all alike)"]


def _memory(dataset: Dataset, split: Split, recipe: Recipe) -> list[str]:
    """A line if one long history makes a batch large, since all are padded to it."""
    examples = recipe.examples
    if "history" not in recipe.query.features or examples.sequence_length or not len(split.train):
        return []
    longest = int(np.bincount(dataset.user_rows[split.train]).max())
    num_queries = examples.batch_size
    if split.history == "others":
        num_queries //= examples.targets_per_query
    num_bytes = num_queries * min(longest, examples.max_history or longest) * BYTES_OF_EVENT
    if num_bytes < LARGE_BATCH:
        return []
    return [
        f"the longest history has {longest:,} events, to which batches are padded: they take about "
        f"{num_bytes / 1e9:.1f} GB (--max_history, such as 1000, cuts histories)"
    ]
