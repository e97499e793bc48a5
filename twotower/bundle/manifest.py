"""The manifest of a bundle: what `manifest.json` holds, and what is checked when it is read."""

import pathlib
from collections.abc import Mapping

from twotower.retrieval.vectors import METRICS
from twotower.storage import description

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
LINEAGE = "training/rows.npy"
# Entries that a manifest must hold besides its format version.
ENTRIES = {
    "model_version": str,
    "dim": int,
    "metric": str,
    "num_items": int,
    "query_inputs": list,
    "files": dict,
}
# Entries that not every version has written.
LATER_ENTRIES = {"ancestors": list, "dataset_reading": dict, "item_inputs": list}
# Types of a tower's input.
DTYPES = ("string", "float32", "int64")
# Files that it must list.
REQUIRED_FILES = {"items/keys.npy", "items/vectors.npy"}
# Folders whose parts list their files themselves, so that one can be added to a bundle.
LISTED_THEMSELVES = ("index/", "funnels/", "rankers/", "map/")


class BundleError(ValueError):
    """A bundle that is incomplete, changed, foreign, newer than this code, or mixed up.

    try:
        bundle = Bundle("W/bundle")
    except BundleError as error:
        print(error)  # what is wrong, and what to do
    """


def state_version(model_version: str) -> int:
    """The number by which a session's state knows its model; it fits an int64."""
    return int(model_version, 16) >> 1


def write_manifest(directory: pathlib.Path, manifest: Mapping) -> None:
    """Writes the manifest with the sha256 of every file below `directory`, but for indexes,
    funnels, rankers and the map, which list their files themselves."""
    files = {
        name: digest
        for name, digest in description.hashes(directory).items()
        if name != MANIFEST and not name.startswith(LISTED_THEMSELVES)
    }
    entries = {**manifest, "format_version": FORMAT_VERSION, "files": files}
    description.write(directory / MANIFEST, entries)


def read_manifest(directory: str | pathlib.Path) -> dict:
    """The manifest of a bundle; no other file is read.

    Raises:
        BundleError: No bundle, a manifest that was changed, or one of another format.
    """
    path = pathlib.Path(directory) / MANIFEST
    try:
        manifest = description.read(path, "a bundle", ENTRIES, FORMAT_VERSION)
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} does not exist, so {directory} is no bundle. `twotower train` writes one "
            "to <workdir>/bundle; was an export interrupted?"
        ) from error
    except ValueError as error:
        raise BundleError(str(error)) from error
    later = {name: manifest.get(name, kind()) for name, kind in LATER_ENTRIES.items()}
    faults = {
        f"{name} must be {kind.__name__}; got {later[name]!r}": type(later[name]) is not kind
        for name, kind in LATER_ENTRIES.items()
    }
    inputs = {"query_inputs": manifest["query_inputs"], "item_inputs": later["item_inputs"]}
    faults |= {
        f"{name} must hold a name, a dtype of {DTYPES} and a shape [null, ...] each; got {given}": (
            not all(map(_is_input, given))
        )
        for name, given in inputs.items()
        if type(given) is list
    }
    faults |= {
        "query_inputs must hold one input or more": not manifest["query_inputs"],
        "ancestors must be versions of models": type(later["ancestors"]) is list
        and any(type(version) is not str for version in later["ancestors"]),
        "model_version must not be empty": not manifest["model_version"],
        f"metric must be one of {METRICS}": manifest["metric"] not in METRICS,
        f"files must hold {sorted(REQUIRED_FILES)}": not manifest["files"].keys() >= REQUIRED_FILES,
    }
    for fault, is_there in faults.items():
        if is_there:
            raise BundleError(f"{path} does not describe a bundle: {fault}.")
    return manifest


def _is_input(entry: object) -> bool:
    """Whether an entry describes one input of a tower."""
    if not isinstance(entry, dict) or type(entry.get("name")) is not str:
        return False
    shape = entry.get("shape")
    if entry.get("dtype") not in DTYPES or type(shape) is not list or not shape:
        return False
    return all(size is None or type(size) is int for size in shape)
