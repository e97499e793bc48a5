"""Folders of bundles: put in each other's place, with another manifest, and a query to ask them."""

import hashlib
import json
import pathlib
import shutil

import numpy as np

from twotower.retrieval import build


def put(source: pathlib.Path, folder: pathlib.Path) -> None:
    """A bundle takes the place of another one, as an export does it."""
    with build.replacing(folder, "manifest.json") as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def described(folder: pathlib.Path, **entries) -> None:
    """Changes entries of the manifest, whose last one is the sha256 of the others."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256", None)
    manifest |= entries
    digest = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
    text = json.dumps({**manifest, "sha256": digest}, indent=1) + "\n"
    (folder / "manifest.json").write_text(text)


def inputs() -> dict:
    return {"user_id": np.array(["u00001"]), "history": np.array([["i00003", "i00007"]])}
