"""Weights of the towers in a bundle: saved by an export, taken over by a warm start."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import BundleError
from twotower.tf import tf
from twotower.training.training import Training


def _paths(part: tf.Module) -> dict[str, tf.Variable]:
    """Weights of a layer by their path in it, such as `blocks/0/norm/gamma`: names that
    depend neither on what else it has nor on how many layers were made before."""
    view, found, seen = tf.train.TrackableView(part), {}, set[int]()
    queue: list[tuple[str, Any]] = [("", part)]
    for path, node in queue:  # the nearest first, so that each has its shortest path
        if isinstance(node, tf.Variable):
            found[path] = node
            continue
        for name, child in view.children(node).items():
            if id(child) not in seen:
                seen.add(id(child))
                queue.append((f"{path}/{name}".strip("/"), child))
    of_part = {id(weight) for weight in part.weights}
    return {path: weight for path, weight in found.items() if id(weight) in of_part}


def _parts(training: Training) -> Iterator[tuple[str, dict, list[str]]]:
    """Name, weights by path and vocabulary of each part of the towers; what a history says of its
    items' content are further parts, with vocabularies."""
    for tower in (training.model.query_tower, training.model.item_tower):
        parts: list[Any] = [*tower.features, tower.head]
        for part in parts:
            content = getattr(part, "content", None)
            inner = content.features if content is not None else []
            inner_weights = {id(weight) for feature in inner for weight in feature.weights}
            weights = {path: w for path, w in _paths(part).items() if id(w) not in inner_weights}
            yield f"{tower.name}/{part.name}", weights, getattr(part, "vocabulary", [])
            for feature in inner:
                name = f"{tower.name}/{part.name}/{feature.name}"
                yield name, _paths(feature), getattr(feature, "vocabulary", [])


def save_weights(training: Training, folder: pathlib.Path) -> None:
    """Writes the towers' weights and vocabularies, from which a warm start begins.

    Args:
        training: Whose weights.
        folder: A new folder, in which `weights.npz` and `vocabularies.json` are written.
    """
    folder.mkdir()
    weights: dict[str, Any] = {}
    vocabularies: dict[str, list[str]] = {}
    for part, of_part, vocabulary in _parts(training):
        weights |= {f"{part}/{path}": weight.numpy() for path, weight in of_part.items()}
        vocabularies |= {part: vocabulary} if len(vocabulary) else {}
    np.savez(folder / "weights.npz", **weights)
    (folder / "vocabularies.json").write_text(json.dumps(vocabularies))


def warm_start(training: Training, bundle: Bundle, allow_seen: bool = False) -> dict[str, int]:
    """Takes over the weights of an earlier bundle, as for a daily retraining on newer data.

    Embedding tables are matched by id and not by row, so vocabularies may grow, shrink or change
    their order. A new id keeps its initial row.

    Args:
        training: What starts from the bundle's weights.
        bundle: Of an earlier training, which must not have seen the answers to the split's
            questions.
        allow_seen: Accept a bundle that has seen them, or that does not say. Figures on the split's
            questions are then too good, and the new bundle's lineage shows it.

    Returns:
        How many weights were `copied` whole, `matched` by id, and left `fresh` (other sizes).

    Raises:
        BundleError: No weight fits, as from quite another model; or the weights are damaged, or
            another bundle has replaced this one.
        ValueError: The bundle has learned from rows that the split keeps for its questions, as one
            that was refit on its validation rows has; or it does not say which rows those were.
    """
    if not allow_seen:
        advice = (
            "Start from a bundle of older rows, such as the <workdir>/bundle_validation of a "
            "training whose <workdir>/bundle was refit; with allow_seen figures are too good."
        )
        bundle.lineage.require_unseen(training.dataset, training.split, advice)
    counts = bundle.read("training", lambda folder: _take_over(training, folder))
    training.ancestor = bundle.lineage
    return counts


def _take_over(training: Training, folder: pathlib.Path) -> dict[str, int]:
    """Sets the weights that `save_weights` wrote, as far as they fit, and counts them."""
    if not (folder / "weights.npz").is_file():
        raise BundleError(
            f"{folder} has no weights, since it joins several bundles: start from one of those."
        )
    old_vocabularies = json.loads((folder / "vocabularies.json").read_text())
    weights = [
        (part, f"{part}/{path}", weight, vocabulary)
        for part, of_part, vocabulary in _parts(training)
        for path, weight in of_part.items()
    ]
    counts = {"copied": 0, "matched": 0, "fresh": 0}
    with np.load(folder / "weights.npz", allow_pickle=False) as old:
        for part, name, weight, new_ids in weights:
            if name not in old:
                counts["fresh"] += 1
                continue
            values, old_ids = old[name], old_vocabularies.get(part, [])
            # A table of ids has one row for unknown ones, or one more for padding.
            special = weight.shape[0] - len(new_ids) if weight.shape.rank else 0
            by_id = len(new_ids) and special in (1, 2) and special == len(values) - len(old_ids)
            if by_id and values.shape[1:] == weight.shape[1:]:
                weight.assign(_by_id(weight.numpy(), new_ids, values, old_ids))
                counts["matched"] += 1
            elif values.shape == weight.shape:
                weight.assign(values)
                counts["copied"] += 1
            else:
                counts["fresh"] += 1
    if not counts["copied"] + counts["matched"]:
        raise BundleError(f"{folder / 'weights.npz'} shares no weight with this recipe's model.")
    return counts


def _by_id(new: np.ndarray, new_ids: list[str], old: np.ndarray, old_ids: list[str]) -> np.ndarray:
    """The new table with the rows of ids that the old one knows, and its leading special rows."""
    special = len(new) - len(new_ids)  # padding and unknown
    row = pd.Index(old_ids).get_indexer(new_ids)
    new[:special] = old[:special]
    new[special:][row >= 0] = old[special:][row[row >= 0]]
    return new
