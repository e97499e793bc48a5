"""The scripts as a person runs them, on the small made-up service."""

import shutil

import numpy as np
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import LINEAGE, read_manifest, write_manifest

SCRIPTS = tiny.ROOT / "experiments"
TINY = [
    "--hidden=16",
    "--dim=8",
    "--batch_size=256",
    "--epochs=2",
    "--learning_rate=0.01",
    "--warmup_steps=5",
]


def run(script: str, *arguments: str, check: bool = True):
    return tiny.script(SCRIPTS / script, *arguments, check=check)


def of_seen_rows(workdir, folder):
    """The bundle of a training that did not see its validation rows, but started from one that
    did: as `train.py --allow_seen` writes it."""
    bundle = shutil.copytree(workdir / "bundle_validation", folder)
    refit = Bundle(workdir / "bundle")
    np.save(bundle / LINEAGE, refit.lineage.rows)
    manifest = read_manifest(bundle) | {"ancestors": [refit.model_version]}
    write_manifest(bundle, manifest)
    return bundle
