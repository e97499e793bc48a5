"""Saves and loads funnels: settings as JSON, arrays as .npy, nothing pickled.

    funnel.json               format and model version, sources, merge, stages, sha256 of every file
    sources/<name>/<array>.npy, merge/<array>.npy, stages/<number>/<array>.npy
    onboarding.npy            keys of the items that new users are asked about, if it has any

Parts that use the trained model, such as `two_tower`, save only their settings. The model is that
of the bundle around the funnel; `funnel.json` has its version.
"""

import importlib
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from twotower import __version__
from twotower.funnel.filters import Filter, Filters
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import Merge
from twotower.funnel.stage import Model, Part, Source, Stage
from twotower.storage import bundle_part, description
from twotower.storage.replacing import replacing

FORMAT_VERSION = 1
DESCRIPTION = "funnel.json"
ONBOARDING = "onboarding.npy"
ENTRIES = {
    "model_version": str,
    "sources": dict,
    "merge": dict,
    "stages": list,
    "pool": int,
    "fallback": str,
    "files": dict,
}
# Arguments of the functions of `bundle_part`, after the folder.
PART = (DESCRIPTION, "a funnel", ENTRIES, FORMAT_VERSION)
# Kind of a part -> its module and its class. A module is imported when such a part is read, so that
# chapters which come after this one can have parts, too.
KINDS = {
    "two_tower": ("funnel.sources.two_tower", "TwoTower"),
    "ease": ("funnel.sources.collaborative", "Ease"),
    "ials": ("funnel.sources.collaborative", "IAls"),
    "item_knn": ("funnel.sources.collaborative", "ItemKnn"),
    "popularity": ("funnel.sources.popularity", "Popularity"),
    "trending": ("funnel.sources.popularity", "Trending"),
    "context_popularity": ("funnel.sources.context_popularity", "ContextPopularity"),
    "search": ("funnel.sources.search", "Search"),
    "similar": ("funnel.sources.similar", "Similar"),
    "diverse": ("funnel.sources.diverse", "Diverse"),
    "fresh": ("funnel.sources.fresh", "Fresh"),
    "exploration_slots": ("funnel.cold_start", "ExplorationSlots"),
    "reciprocal_rank": ("funnel.merge", "ReciprocalRank"),
    "quotas": ("funnel.merge", "Quotas"),
    "weighted_sum": ("funnel.merge", "WeightedSum"),
    "filters": ("funnel.filters", "Filters"),
    "seen": ("funnel.filters", "Seen"),
    "blocked": ("funnel.filters", "Blocked"),
    "shown": ("funnel.filters", "Shown"),
    "available": ("funnel.filters", "Available"),
    "minimum_age": ("funnel.filters", "MinimumAge"),
    "hold_out": ("funnel.filters", "HoldOut"),
    "rank": ("ranking.stage", "Rank"),
    "mmr": ("reranking.diversity", "Mmr"),
    "dpp": ("reranking.diversity", "Dpp"),
    "calibration": ("reranking.calibration", "Calibration"),
    "at_most": ("reranking.rules", "AtMost"),
    "promoted": ("reranking.promoted", "Promoted"),
    "promoted_slots": ("reranking.promoted", "PromotedSlots"),
    "epsilon_greedy": ("reranking.bandits", "EpsilonGreedy"),
    "thompson": ("reranking.bandits", "Thompson"),
    "cascade_ucb": ("reranking.upper_bounds", "CascadeUcb"),
    "lin_ucb": ("reranking.upper_bounds", "LinUcb"),
}


def save(funnel: Funnel, directory: str | pathlib.Path, model_version: str) -> None:
    """Writes a funnel to a temporary folder, which then replaces `directory`.

    Args:
        funnel: The funnel.
        directory: A funnel that is there is replaced; a folder of something else is refused.
        model_version: Version of the model that its parts use; `load` requires the same.

    Raises:
        ValueError: A part of a kind that `KINDS` does not have, with arrays of another type or
            shape than it says, or a folder that may not be replaced; the folder that was there
            stays.
    """
    with replacing(directory, DESCRIPTION) as folder:
        entries: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "model_version": model_version,
            "sources": {
                name: {
                    **_write(inlet.source, folder, f"sources/{name}"),
                    "k": inlet.k,
                    "deadline": inlet.deadline,
                    "keep": inlet.keep,
                }
                for name, inlet in funnel.sources.items()
            },
            "merge": _write(funnel.merge, folder, "merge"),
            "stages": [
                _write(stage, folder, f"stages/{number}")
                for number, stage in enumerate(funnel.stages)
            ],
            "pool": funnel.pool,
            "fallback": funnel.fallback,
            "twotower": __version__,
        }
        if len(funnel.onboarding):
            np.save(folder / ONBOARDING, funnel.onboarding, allow_pickle=False)
        entries["files"] = description.hashes(folder)
        # Settings may be of NumPy's types, which JSON does not know.
        plain = json.loads(json.dumps(entries, default=lambda value: value.tolist()))
        description.write(folder / DESCRIPTION, plain)


def load(directory: str | pathlib.Path, model: Model, model_version: str) -> Funnel:
    """Reads a funnel.

    Args:
        directory: What `save` wrote.
        model: The model that its parts use, such as a bundle.
        model_version: Version of that model. A funnel that was saved with another is refused.

    Raises:
        ValueError: No funnel, another format, a file that is missing, changed or not listed, parts
            that do not fit together, or a funnel of another model; the message names the file.
    """

    def make(directory: pathlib.Path, entries: dict) -> Funnel:
        try:
            return _funnel(entries, directory, model)
        except ValueError as error:  # which says what is wrong, and not where
            path = directory / DESCRIPTION
            raise ValueError(f"{path}: its parts do not fit together: {error}") from error

    return bundle_part.load(directory, *PART, model_version, make)


def check(directory: str | pathlib.Path, model_version: str) -> None:
    """Compares the files of a funnel with what describes them. Its parts are not opened.

    Raises:
        ValueError: As `load`, but for parts that do not fit together.
    """
    bundle_part.load(directory, *PART, model_version, lambda *_: None)


def _funnel(entries: Mapping[str, Any], directory: pathlib.Path, model: Model) -> Funnel:
    files = entries["files"]
    sources = {
        name: Inlet(
            _read(entry, directory, files, f"sources/{name}", model, Source),
            entry["k"],
            entry["deadline"],
            entry.get("keep", 0),  # earlier funnels keep nothing
        )
        for name, entry in entries["sources"].items()
    }
    merge = _read(entries["merge"], directory, files, "merge", model, Merge)
    stages = [
        _read(entry, directory, files, f"stages/{number}", model, Stage)
        for number, entry in enumerate(entries["stages"])
    ]
    is_there = ONBOARDING in files
    onboarding = np.load(directory / ONBOARDING, allow_pickle=False) if is_there else ()
    return Funnel(sources, merge, stages, entries["pool"], entries["fallback"], onboarding)


def _write(part: Part, folder: pathlib.Path, place: str) -> dict[str, Any]:
    """Writes a part's arrays to `folder/place`, and returns its entry of the description."""
    if KINDS.get(part.kind, ("", ""))[1] != type(part).__name__:
        raise ValueError(
            f"{type(part).__name__} cannot be saved: twotower.funnel.saving.KINDS does not name "
            "it. Register it there under its `kind`."
        )
    if isinstance(part, Filters):
        parts = [_write(f, folder, f"{place}/{i}") for i, f in enumerate(part.filters)]
        return {"kind": part.kind, "filters": parts}
    write_arrays(part, folder / place)
    return {"kind": part.kind, "settings": part.settings()}


def _read(
    entry: Mapping[str, Any],
    directory: pathlib.Path,
    files: Collection[str],
    place: str,
    model: Model,
    base: type,
) -> Any:
    """The part that an entry describes; it must be a `base`, and reads none but `files`."""
    kind = entry["kind"]
    if kind not in KINDS:
        raise ValueError(f"{place}: unknown kind {kind!r}; there are {', '.join(KINDS)}.")
    module, name = KINDS[kind]
    found = getattr(importlib.import_module(f"twotower.{module}"), name)
    if not issubclass(found, base):
        raise ValueError(f"{place}: {kind!r} is no {base.__name__.lower()}.")
    if found is Filters:
        parts = enumerate(entry["filters"])
        return Filters(
            [_read(f, directory, files, f"{place}/{i}", model, Filter) for i, f in parts]
        )
    arrays = read_arrays(found, directory, files, place)
    return found.restore(entry["settings"], arrays, model)


def write_arrays(part: Part, folder: pathlib.Path) -> None:
    """Writes the arrays of a part as `folder/<array>.npy`, if it has any.

    Raises:
        ValueError: An array of another type or shape than the part says.
    """
    part.check(part.arrays())
    for name, values in part.arrays().items():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", values, allow_pickle=False)


def read_arrays(
    kind: type[Part], directory: pathlib.Path, files: Collection[str], place: str
) -> dict[str, np.ndarray]:
    """The arrays that `write_arrays` wrote to `directory/place`.

    Args:
        kind: The part's class.
        directory: The folder that was described.
        files: What its description lists; nothing else is read.
        place: Folder within it.

    Raises:
        ValueError: An array that is not listed, or of another type or shape than the part says.
    """
    arrays = {}
    for array in kind.array_names():
        path = f"{place}/{array}.npy"
        if path not in files:  # also keeps names with `..` from leading out of the folder
            raise ValueError(f"{path} is none of its files.")
        arrays[array] = np.load(directory / path, allow_pickle=False)
    kind.check(arrays)
    return arrays
