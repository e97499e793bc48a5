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
# Entries of each of its query inputs.
INPUT_ENTRIES = {"name": str, "dtype": str, "shape": list}
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
    inputs = [entry if isinstance(entry, dict) else {} for entry in manifest["query_inputs"]]
    faults = {
        "model_version must not be empty": not manifest["model_version"],
        f"metric must be one of {METRICS}": manifest["metric"] not in METRICS,
        f"files must hold {sorted(REQUIRED_FILES)}": not manifest["files"].keys() >= REQUIRED_FILES,
        "query_inputs must hold a name, dtype and shape each": any(
            type(entry.get(name)) is not kind
            for entry in inputs
            for name, kind in INPUT_ENTRIES.items()
        ),
    }
    for fault, is_there in faults.items():
        if is_there:
            raise BundleError(f"{path} does not describe a bundle: {fault}.")
    return manifest
