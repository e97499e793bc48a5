"""IndexService: an index process, which has vectors and indexes, and no towers and funnels.

It holds the indexes of several trainings at once. Every call names its training, so during a deploy
query processes of the old one and of the new one are answered, each by its own.
"""

import asyncio
import base64
import concurrent.futures
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from twotower.ragged import Ragged
from twotower.serving import schemas
from twotower.serving.added_vectors import AddedVectors
from twotower.serving.asks import FieldError
from twotower.serving.checks import Checks, failed_indexes
from twotower.serving.deployer import DeployRefused
from twotower.serving.metrics import Metrics
from twotower.serving.registry import Registry, verify
from twotower.serving.served_bundle import ServedBundle
from twotower.serving.service import FOLLOW, LateError

if TYPE_CHECKING:  # an extra, which is imported where traces are asked for
    from twotower.serving.tracing import Tracing

LOG = logging.getLogger("twotower.serving")

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """A bundle that answers, and its version in the registry ("" without one)."""

    version: str
    bundle: ServedBundle


class IndexService:
    """Answers searches from the indexes of one or several bundles.

    With a registry it holds the active version, the previous one, the canary, and the one that
    `deploy` was called with last.

    Args:
        state: Folder for the vectors of added items; made where it does not exist.
        bundle: Folder of a bundle; not read where there is a registry.
        registry: Which is followed; None for one bundle for ever.
        index: Index of searches that name none; see `ServedBundle`.
        deadline: Seconds after which a request is given up.
        checks: What an index must show before it serves.
        tracing: Makes the spans of requests; None for no traces.

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
        deadline: float = 2.0,
        checks: Checks | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.metrics, self.tracing, self.is_ready = Metrics(), tracing, False
        self._registry, self._index, self._deadline = registry, index, deadline
        self._checks = checks or Checks()
        state = pathlib.Path(state)
        state.mkdir(parents=True, exist_ok=True)
        self._added = AddedVectors(state / "vectors.sqlite")
        self._asked, self._refused = "", set[str]()
        if registry is not None:
            bundle = str(registry.path(registry.active.version))
        self.held = [Held(registry.active.version if registry else "", self._opened(bundle))]
        self.look()
        # Changes of items and deploys, one after another; and searches.
        self._changes = concurrent.futures.ThreadPoolExecutor(1, "changes")
        self._searches = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "searches")
        self._follower: asyncio.Task | None = None

    # Searches.

    def of(self, model_version: str) -> ServedBundle:
        """The bundle of a training.

        Raises:
            FieldError: It is not here.
        """
        for held in self.held:
            if held.bundle.model_version == model_version:
                return held.bundle
        raise FieldError(
            "model_version",
            f"this index holds vectors of {self.model_versions} and not of {model_version!r}; "
            "embed by a query tower of these, or deploy that bundle here first",
        )

    @property
    def model_versions(self) -> list[str]:
        """The trainings whose vectors are here, the live one first."""
        return [*dict.fromkeys(held.bundle.model_version for held in self.held)]

    async def search(self, body: schemas.Search) -> dict[str, Any]:
        """The answer of `POST /search`.

        Raises:
            FieldError: Vectors of another training or length, or no such index.
        """
        bundle = self.of(body.model_version)
        vectors = bundle.as_vectors(body.vectors)

        def search() -> dict[str, Any]:
            items = bundle.search(vectors, body.k, body.exclude, body.index)
            return {"items": items, "model_version": bundle.model_version}

        return await self._in_time(search)

    async def retrieve(self, body: schemas.Retrieve) -> dict[str, Any]:
        """The answer of `POST /retrieve`: ids of each vector, and the scores of all.

        Raises:
            FieldError: Vectors of another training or length, or no such index.
        """
        bundle = self.of(body.model_version)
        vectors = decoded(body.vectors, bundle.manifest["dim"])
        if body.exclude and len(body.exclude) != len(vectors):
            raise FieldError("exclude", f"expected a list for each of {len(vectors)} vectors")

        def retrieve() -> dict[str, Any]:
            rows = [bundle.items_now.keys_of(ids) for ids in body.exclude]
            exclude = Ragged.from_rows([row[row >= 0] for row in rows]) if rows else None
            try:
                found = bundle.named(body.index).search(vectors, body.k, exclude)
            except FieldError:
                raise
            except ValueError as error:
                raise FieldError("vectors", str(error)) from error
            # Read after the search, which may find an item that was added meanwhile.
            ids, counts = bundle.items_now.ids_of(found.keys), found.counts.tolist()
            return {
                "items": [row[:count].tolist() for row, count in zip(ids, counts)],
                "scores": base64.b64encode(found.scores[found.valid].astype("<f4")).decode(),
                "model_version": bundle.model_version,
            }

        return await self._in_time(retrieve)

    async def _in_time(self, search: Callable[[], Result]) -> Result:
        call = asyncio.get_running_loop().run_in_executor(self._searches, search)
        try:
            return await asyncio.wait_for(call, self._deadline)
        except TimeoutError as error:
            raise LateError from error

    # Changes.

    async def change_items(self, body: schemas.Vectors) -> dict[str, Any]:
        """Adds, replaces and removes vectors: on disk and in the indexes when this returns.

        Raises:
            FieldError: Vectors of another training or length; nothing is changed then.
        """
        bundle = self.of(body.model_version)
        vectors = bundle.as_vectors([item.vector for item in body.add])
        added = {item.item_id: vector for item, vector in zip(body.add, vectors)}
        if len({*added, *body.remove}) < len(body.add) + len({*body.remove}):
            raise FieldError("add", "an item is there twice")

        def change() -> dict[str, Any]:
            # All bundles of the training, which differ in their indexes.
            for held in self.held:
                if held.bundle.model_version == body.model_version:
                    change_vectors(held.bundle, {**added, **dict.fromkeys(body.remove)})
            self._added.write(body.model_version, added, body.remove)
            return {"num_items": bundle.num_items, "model_version": bundle.model_version}

        return await self._changed(change)

    async def _changed(self, change: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._changes, change)

    # Deploys.

    async def deploy(self, version: str) -> dict[str, Any]:
        """Holds a version of the registry beside the others, so that query processes may take it.

        Raises:
            FieldError: No registry, or no such version.
            DeployRefused: A check failed.
        """
        registry = self.registry
        if version not in registry.versions:
            raise FieldError("version", f"expected one of {registry.versions[-10:]}")

        def deploy() -> dict[str, Any]:
            self._hold([*self._wanted(), version], retry=version)
            self._asked = version
            return self.status()

        return await self._changed(deploy)

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
            self.registry.refuse(version, reasons)
            LOG.error("version %s is refused: %s", version, "; ".join(reasons))
            raise DeployRefused(reasons)
        return bundle

    def _opened(self, folder: str | pathlib.Path) -> ServedBundle:
        """The bundle of a folder, with the items that were added since."""
        bundle = ServedBundle(folder, self._index)
        change_vectors(bundle, self._added.read(bundle.model_version))
        return bundle

    # Life.

    async def start(self) -> None:
        """Begins to follow the registry."""
        self._follower = asyncio.create_task(self._keep_following())
        self.is_ready = True

    async def _keep_following(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW)
            try:
                await self._changed(self.look)
            except Exception:  # a full disk, say; the next look may succeed
                LOG.exception("following failed")

    async def stop(self) -> None:
        """Ends the threads."""
        self.is_ready = False
        if self._follower is not None:
            self._follower.cancel()
        for pool in (self._changes, self._searches):
            pool.shutdown(wait=True)
        self._added.close()

    def status(self) -> dict[str, Any]:
        """What `GET /readyz` answers."""
        live = self.held[0].bundle
        return {
            "status": "ready" if self.is_ready else "starting",
            "model_versions": self.model_versions,
            "versions": [held.version for held in self.held if held.version],
            "num_items": live.num_items,
            "indexes": ["exact", *live.indexes],
        }

    def metrics_text(self) -> bytes:
        """What `GET /metrics` answers."""
        self.metrics.items.set(self.held[0].bundle.num_items)
        self.metrics.version.clear()
        for model_version in self.model_versions:
            self.metrics.version.labels(model_version).set(1)
        return self.metrics.text()


def decoded(text: str, dim: int) -> np.ndarray:
    """Vectors from base64, `[num_vectors, dim]` float32.

    Raises:
        FieldError: No base64, or no whole vectors of this length.

    >>> decoded("AACAPwAAAEA=", 2).tolist()
    [[1.0, 2.0]]
    """
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise FieldError("vectors", "expected base64") from error
    if not content or len(content) % (4 * dim):
        found = f"expected {dim} float32 each, {4 * dim} bytes; got {len(content)}"
        raise FieldError("vectors", found)
    return np.frombuffer(content, "<f4").reshape(-1, dim)


def change_vectors(bundle: ServedBundle, changed: dict[str, np.ndarray | None]) -> None:
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
        try:
            bundle.add_items(pd.DataFrame({"item_id": [*added]}), np.stack([*added.values()]))
        except ValueError as error:
            raise FieldError("add", str(error)) from error
    if len(gone := gone[gone >= 0]):
        bundle.remove_items(gone)
