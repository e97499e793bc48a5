"""Shelf: the bundles that an index process holds, of several trainings at once.

Every call names its training, so during a deploy query processes of the old one and of the new one
are answered, each by its own.
"""

import dataclasses
import gc
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from twotower.serving.added_vectors import AddedVectors
from twotower.serving.asks import FieldError
from twotower.serving.checks import Checks, failed_indexes
from twotower.serving.deployer import DeployRefused, note_refused
from twotower.serving.metrics import Metrics
from twotower.serving.registry import Registry, verify
from twotower.serving.served_bundle import ServedBundle

LOG = logging.getLogger("twotower.serving")


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """A bundle that answers, and its version in the registry ("" without one)."""

    version: str
    bundle: ServedBundle


class Shelf:
    """Holds the registry's active version, the previous one, the canary, and the one that `deploy`
    was called with last. One thread at a time may change it, while others read `held`.

    Args:
        state: Folder for the vectors of added items; made where it does not exist.
        bundle: Folder of a bundle; not read where there is a registry.
        registry: Which is followed; None to serve one bundle only.
        index: Index of searches that name none; see `ServedBundle`.
        checks: What an index must show before it serves.

    Attributes:
        held: What answers, the live one first.
        metrics: Where deploys are counted.

    Raises:
        BundleError: A bundle that is damaged.
        ValueError: A registry without an active version.
    """

    def __init__(
        self,
        state: str | pathlib.Path,
        bundle: str = "",
        registry: Registry | None = None,
        index: str = "",
        checks: Checks | None = None,
    ) -> None:
        self._registry, self._index, self._checks = registry, index, checks or Checks()
        self.metrics = Metrics()
        state = pathlib.Path(state)
        state.mkdir(parents=True, exist_ok=True)
        self._added = AddedVectors(state / "vectors.sqlite")
        self._asked, self._refused = "", set[str]()
        if registry is None:
            self.held = [Held("", self._opened(bundle))]
        else:
            self.held = [Held(*registry.first_good(self._opened))]
        self.look()

    def of(self, model_version: str, version: str = "") -> ServedBundle:
        """The bundle of a training.

        Two bundles of one training may have different indexes.

        Args:
            model_version: The training.
            version: The version of the bundle. If it is "" or not held, this is the first bundle of
                the training.

        Raises:
            FieldError: No bundle of the training is held.
        """
        found = [held for held in self.held if held.bundle.model_version == model_version]
        if found:
            return min(found, key=lambda held: held.version != version).bundle
        raise FieldError(
            "model_version",
            f"this index holds vectors of {self.model_versions} and not of {model_version!r}; "
            "embed by a query tower of these, or deploy that bundle here first",
        )

    @property
    def model_versions(self) -> list[str]:
        """The trainings whose vectors are here, the live one first."""
        return [*dict.fromkeys(held.bundle.model_version for held in self.held)]

    def change(
        self, model_version: str, added: Mapping[str, np.ndarray], removed: Sequence[str]
    ) -> None:
        """Adds, replaces and removes items of a training: in the indexes and on disk.

        Args:
            model_version: The training.
            added: Id -> `[dim]` float32.
            removed: Ids; unknown ones do no harm.

        Raises:
            FieldError: Vectors that an index cannot hold; nothing is changed then.
        """
        # All bundles of the training, which differ in their indexes.
        for held in self.held:
            if held.bundle.model_version == model_version:
                change_vectors(held.bundle, {**added, **dict.fromkeys(removed)})
        self._added.write(model_version, added, removed)

    def deploy(self, version: str) -> None:
        """Holds a version of the registry beside the others, so that query processes may take it.

        Raises:
            FieldError: No registry, or no such version.
            DeployRefused: A check failed.
        """
        if version not in self.registry.versions:
            raise FieldError("version", f"expected one of {self.registry.versions[-10:]}")
        self._hold([*self._wanted(), version], retry=version)
        self._asked = version

    @property
    def registry(self) -> Registry:
        """The registry.

        Raises:
            FieldError: There is none.
        """
        if self._registry is None:
            raise FieldError("version", "this index has no registry")
        return self._registry

    def look(self) -> None:
        """Holds what the registry names, and lets go of what it names no more."""
        if self._registry is not None:
            self._hold(self._wanted())

    def _wanted(self) -> list[str]:
        """Versions to hold, the live one first."""
        active, there = self.registry.active, self.registry.versions
        named = (active.version, active.canary, active.previous, self._asked)
        return [version for version in dict.fromkeys(named) if version in there]

    def _hold(self, versions: list[str], retry: str = "") -> None:
        """Holds these versions and no others.

        Raises:
            DeployRefused: A check of the version `retry` failed.
        """
        known = {held.version: held for held in self.held}
        versions = [*dict.fromkeys(versions)]
        for version in [v for v in versions if v not in known]:
            if version in self._refused and version != retry:
                continue
            try:
                known[version] = Held(version, self._checked(version))
                LOG.info("held: %s", version)
            except DeployRefused:
                self._refused.add(version)
                if version == retry:
                    raise
        held = [known[version] for version in versions if version in known]
        if held and [some.version for some in held] != [some.version for some in self.held]:
            self.held = held
            self._added.keep(self.model_versions)

    def _checked(self, version: str) -> ServedBundle:
        """The bundle of a version.

        Raises:
            DeployRefused: A check failed.
        """
        try:
            folder = self.registry.path(version)
            verify(folder)
            bundle = self._opened(folder)
            reasons = failed_indexes(bundle, self.held[0].bundle.num_items, self._checks)
        except Exception as error:  # whatever a damaged bundle raises: it does not serve
            reasons = [f"{type(error).__name__}: {error}"]
        self.metrics.deploys.labels("refused" if reasons else "live").inc()
        if reasons:
            note_refused(self.registry, version, reasons)
            LOG.error("version %s is refused: %s", version, "; ".join(reasons))
            raise DeployRefused(reasons)
        return bundle

    def _opened(self, folder: str | pathlib.Path) -> ServedBundle:
        """The bundle of a folder, with the items that were added since."""
        gc.collect()  # frees replaced bundles, as in the deployer
        bundle = ServedBundle(folder, self._index)
        change_vectors(bundle, self._added.read(bundle.model_version))
        return bundle

    def close(self) -> None:
        """Releases the file of added vectors."""
        self._added.close()


def change_vectors(bundle: ServedBundle, changed: Mapping[str, np.ndarray | None]) -> None:
    """Adds or replaces items of a bundle, and removes those without a vector.

    Args:
        bundle: Whose items.
        changed: Id -> `[dim]` float32, or None.

    Raises:
        FieldError: Vectors that the bundle's indexes cannot hold; nothing is changed then.
    """
    added = {item: vector for item, vector in changed.items() if vector is not None}
    gone = bundle.items_now.keys_of([item for item, vector in changed.items() if vector is None])
    if added:
        items, new = bundle.items_now, [*added]
        if unknown := [item for item, key in zip(new, items.keys_of(new)) if key < 0]:
            items = items.extend(pd.DataFrame({"item_id": unknown}))
        try:
            bundle.add_items(items, items.keys_of(new), np.stack([*added.values()]))
        except ValueError as error:
            raise FieldError("add", str(error)) from error
    if len(gone := gone[gone >= 0]):
        bundle.remove_items(gone)
