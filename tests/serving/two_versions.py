"""A service with two versions, and a request that the two answer with different items."""

import functools
import pathlib
import shutil

from damaged_files import flip

from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.registry import Registry
from twotower.serving.service import Options, Service

BODY = {"history": ["i00003", "i00007", "i00011"], "k": 8, "funnel": "two_tower"}


def registered(
    folder: pathlib.Path, bundle_folder: pathlib.Path, other_folder: pathlib.Path
) -> tuple[Registry, str, str, str]:
    """A registry of two bundles, the first of them active, and of one that was damaged later."""
    registry = Registry(folder / "registry")
    first, second = registry.put(bundle_folder), registry.put(other_folder)
    bad = f"{second[:-8]}00000000"
    shutil.copytree(registry.path(second), registry.folder / "versions" / bad)
    flip(registry.path(bad) / "items" / "vectors.npy")
    registry.activate(first)
    return registry, first, second, bad


def served(
    folder: pathlib.Path, bundle_folder: pathlib.Path, other_folder: pathlib.Path
) -> tuple[Service, str, str, str]:
    """A service of such a registry."""
    registry, first, second, bad = registered(folder, bundle_folder, other_folder)
    # Without a deadline: this machine may be busy.
    load = functools.partial(Pipeline, source_deadline=60)
    live = Live((load(registry.path(first)),), versions=(first,))
    options = Options(deadline=60)
    service = Service(live, folder / "state", registry=registry, load=load, options=options)
    return service, first, second, bad
