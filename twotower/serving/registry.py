"""Registry: a folder of bundles, one of which is active, and the last one to roll back to.

    active.json             which version is active, which was before, and a canary with its share
    versions/<version>/     bundles as they were exported
    refused/<version>.json  why a service refused a version

`put` copies a bundle beside its place, checks it, and moves it there in one step, so half a copy is
never a version; the next `put` removes what a killed one left. Services are asked for a version by
its name, never by a path.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import BundleError
from twotower.funnel import saving
from twotower.ranking import files as ranker_files
from twotower.retrieval.base import Retriever
from twotower.storage import paths
from twotower.storage.replacing import unfinished
from twotower.storage.syncing import sync

Loaded = TypeVar("Loaded")
VERSION = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")
# What describes the parts of a bundle, and so together its whole content.
DESCRIPTIONS = (
    "manifest.json",
    "index/*/index.json",
    "funnels/*/funnel.json",
    "rankers/*/ranker.json",
    "map/map.json",
)


@dataclasses.dataclass(frozen=True)
class Active:
    """What a registry says is to serve.

    Attributes:
        version: The active one, "" before any.
        previous: The one before it, for a roll-back.
        canary: A version for a share of the users, "" for none.
        share: That share.

    >>> Active("16eea292fb850412-0a1b2c3d").canary
    ''
    """

    version: str = ""
    previous: str = ""
    canary: str = ""
    share: float = 0.0

    @property
    def served(self) -> tuple[str, str, float]:
        """What answers: the version, the canary, and its share."""
        return self.version, self.canary, self.share


class Registry:
    """Bundles by version.

        registry = Registry("W/registry")
        version = registry.put("W/bundle")
        registry.activate(version)

    Args:
        folder: Made where it does not exist.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        self.folder = paths.literal(folder)
        for name in ("versions", "refused"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def versions(self) -> list[str]:
        """Names of the bundles, the oldest first."""
        found = [p for p in (self.folder / "versions").iterdir() if VERSION.fullmatch(p.name)]
        return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]

    def path(self, version: str) -> pathlib.Path:
        """The folder of a version.

        Raises:
            ValueError: There is none.
        """
        if version not in self.versions:
            raise ValueError(f"no version {version!r}; there are {self.versions}.")
        return self.folder / "versions" / version

    def put(self, bundle: str | pathlib.Path) -> str:
        """Copies a bundle into the registry; returns its version, which its content determines.

        Raises:
            BundleError: A file that is missing, changed, or of another training; nothing is kept.
        """
        bundle = paths.local(bundle)
        with unfinished(self._any_version) as copy:
            try:
                shutil.copytree(bundle, copy, dirs_exist_ok=True)
            except (OSError, shutil.Error) as error:
                raise BundleError(f"{bundle} cannot be copied: {error}") from error
            try:
                verify(copy)
            except BundleError as error:  # of the copy, which nobody knows
                raise BundleError(str(error).replace(str(copy), str(bundle))) from error
            version = version_of(copy)
            place = self.folder / "versions" / version
            if not place.exists():
                for path in [copy, *copy.rglob("*")]:
                    sync(path)
                os.utime(copy)  # its age in the registry, not that of the export
                with contextlib.suppress(FileExistsError):  # another process was quicker
                    _rename(copy, place)
                sync(place.parent)
        return version

    @property
    def _any_version(self) -> pathlib.Path:
        """Beside which folders stand that are being copied or removed: `.version.partial-...`."""
        return self.folder / "versions" / "version"

    @property
    def active(self) -> Active:
        """What is to serve.

        Raises:
            ValueError: A file that no registry has written.
        """
        path = self.folder / "active.json"
        try:
            found = Active(**json.loads(path.read_text()))
            names = [found.version, found.previous, found.canary]
            if not all(name == "" or VERSION.fullmatch(name) for name in names):
                raise ValueError(f"it names {names}")
            if not 0 <= found.share < 1:
                raise ValueError(f"its share is {found.share}")
        except FileNotFoundError:
            return Active()
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged: {error}. Remove it and activate one of {self.versions}."
            ) from error
        return found

    def activate(self, version: str, share: float = 1.0) -> None:
        """Makes a version the active one, or the canary for a share of the users below 1.

        Raises:
            ValueError: No such version, or a share that is not within 0 and 1.
        """
        self.path(version)
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1; got {share}.")
        now = self.active
        if share < 1:
            if not now.version:
                raise ValueError("a canary needs an active version beside it.")
            if version == now.version:
                raise ValueError(f"{version} is the active version; a canary is another one.")
            self._write(dataclasses.replace(now, canary=version, share=share))
        elif version != now.version or now.canary:
            previous = now.version if version != now.version else now.previous
            self._write(Active(version, previous))

    def roll_back(self, expected: Active | None = None) -> str:
        """Ends the canary if there is one, else makes the previous version active; returns the
        active version.

        Args:
            expected: What is active as far as the caller knows; None not to compare it.

        Raises:
            ValueError: There is no previous version, or something else is active by now.
        """
        now = self.active
        if expected is not None and now != expected:
            raise ValueError(
                f"another process has made {now.version!r} active meanwhile; look at what serves, "
                "and roll back again if it is still wrong."
            )
        if now.canary:
            self._write(dataclasses.replace(now, canary="", share=0.0))
            return now.version
        if not now.previous:
            raise ValueError(f"no version came before the active one, {now.version!r}.")
        self.path(now.previous)
        self._write(Active(now.previous, now.version))
        return now.previous

    def _write(self, active: Active) -> None:
        text = json.dumps(dataclasses.asdict(active), indent=1)
        _replace(self.folder / "active.json", text)

    def refuse(self, version: str, reasons: list[str]) -> None:
        """Notes why a service refused a version. If it is the active one, the previous one becomes
        active again; if it is the canary, there is none from now on."""
        _replace(self._refused(version), json.dumps(reasons))
        now = self.active
        if version == now.canary:
            self._write(dataclasses.replace(now, canary="", share=0.0))
        elif version == now.version and now.previous in self.versions:
            self._write(Active(now.previous))

    def accept(self, version: str) -> None:
        """Takes back that a version was refused, since a service has found it good."""
        if (path := self._refused(version)).is_file():  # the registry may be read-only
            path.unlink(missing_ok=True)

    def refused(self, version: str) -> list[str]:
        """Why a service refused a version; nothing where none did."""
        path = self._refused(version)
        return json.loads(path.read_text()) if path.is_file() else []

    def first_good(self, load: Callable[[pathlib.Path], Loaded]) -> tuple[str, Loaded]:
        """The version that a service starts with, and what `load` makes of its folder: the active
        one, or the previous one if the active one is damaged, which is refused then.

        A service that starts has nothing to compare a version with. So it does not make the other
        checks of a deploy.

        Args:
            load: Opens a bundle's folder.

        Raises:
            BundleError: Neither version can be loaded.
        """
        active, reasons = self.active, []
        there = [v for v in (active.version, active.previous) if v in self.versions]
        for version in dict.fromkeys(there):
            # The only one may have been repaired.
            found = self.refused(version) if len(there) > 1 else []
            if not found:
                try:
                    return version, load(self.path(version))
                except BundleError as error:
                    found = [str(error)]
            self.refuse(version, found)
            reasons.append(f"{version}: {'; '.join(found)}")
        raise BundleError(f"no version of {self.folder} can be served. {' '.join(reasons)}")

    def _refused(self, version: str) -> pathlib.Path:
        if not VERSION.fullmatch(version):
            raise ValueError(f"{version!r} is no name of a version.")
        return self.folder / "refused" / f"{version}.json"

    def prune(self, keep: int = 3) -> list[str]:
        """Removes the oldest versions; the active and previous ones, the canary, and the newest
        `keep` stay. Returns what was removed."""
        now = self.active
        stay = {now.version, now.previous, now.canary, *self.versions[-keep:]}
        gone = [version for version in self.versions if version not in stay]
        for version in gone:
            # Moved away first, so that no half of it is a version.
            with unfinished(self._any_version) as removed:
                os.rename(self.folder / "versions" / version, removed)
        return gone


def version_of(folder: pathlib.Path) -> str:
    """The version of a bundle: its training, and a hash of all that it holds.

    Raises:
        BundleError: No bundle.
    """
    digest = hashlib.sha256()
    for pattern in DESCRIPTIONS:
        for path in sorted(folder.glob(pattern)):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return f"{Bundle(folder, verify=False).model_version}-{digest.hexdigest()[:8]}"


def verify(folder: pathlib.Path) -> None:
    """Compares every file of a bundle with its hash, and the vectors of its indexes with those of
    its items.

    Funnels and rankers are not opened: TensorFlow would read their SavedModels for seconds, in a
    process that goes on answering. Who serves a funnel opens it anyway.

    Raises:
        BundleError: A file that is missing, changed, not listed, or of another training; or an
            index that holds other vectors than the bundle's items have.
    """
    bundle = Bundle(folder)
    for part in sorted({pathlib.PurePath(name).parts[0] for name in bundle.manifest["files"]}):
        bundle.read(part, lambda path: None, verify=True)
    items = _sorted_items(bundle.retriever("exact"))
    for name in bundle.indexes:
        # Its hashes are its own, so they do not tell whose vectors it holds.
        held = _sorted_items(bundle.retriever(name))
        if not all(map(np.array_equal, held, items)):
            raise BundleError(
                f"the index {name} holds other items or vectors than items/. Build it anew: "
                f"twotower build_index --bundle={folder} --name={name}."
            )
    try:
        for name in bundle.rankers:
            ranker_files.check(folder / "rankers" / name, bundle.model_version)
        for name in bundle.funnels:
            saving.check(folder / "funnels" / name, bundle.model_version)
    except ValueError as error:
        raise BundleError(str(error)) from error
    if bundle.has_map:
        bundle.item_map()


def _sorted_items(index: Retriever) -> tuple[np.ndarray, np.ndarray]:
    """Keys, ascending, and vectors of an index."""
    keys, vectors = index.live()
    if (np.diff(keys) > 0).all():
        return keys, vectors
    order = np.argsort(keys)
    return keys[order], vectors[order]


def _rename(folder: pathlib.Path, place: pathlib.Path) -> None:
    """Moves a folder; raises FileExistsError if another one is there."""
    try:
        os.rename(folder, place)
    except OSError as error:
        if place.exists():
            raise FileExistsError(place) from error
        raise


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a file in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_text(text)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)
