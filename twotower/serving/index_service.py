"""IndexService: an index process, which has vectors and indexes, and no towers and funnels."""

import asyncio
import base64
import concurrent.futures
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from twotower.ragged import Ragged
from twotower.serving import schemas
from twotower.serving.asks import FieldError
from twotower.serving.served_bundle import ServedBundle
from twotower.serving.service import FOLLOW, LateError
from twotower.serving.shelf import Shelf

if TYPE_CHECKING:  # an extra, which is imported where traces are asked for
    from twotower.serving.tracing import Tracing

LOG = logging.getLogger("twotower.serving")

Result = TypeVar("Result")


class IndexService:
    """Answers searches from the indexes of one or several bundles.

    Args:
        shelf: The bundles. It is closed with the service.
        deadline: Seconds after which a request is given up.
        tracing: Makes the spans of requests; None for no traces.
    """

    def __init__(
        self, shelf: Shelf, deadline: float = 2.0, tracing: "Tracing | None" = None
    ) -> None:
        self.metrics, self.tracing, self.is_ready = shelf.metrics, tracing, False
        self._shelf, self._deadline = shelf, deadline
        # Changes of items and deploys, one after another; and searches.
        self._changes = concurrent.futures.ThreadPoolExecutor(1, "changes")
        self._searches = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "searches")
        # Opens an index at its first search, so that searches of other indexes need not wait.
        self._opener = concurrent.futures.ThreadPoolExecutor(1, "opener")
        self._follower: asyncio.Task | None = None

    # Searches.

    async def search(self, body: schemas.Search) -> dict[str, Any]:
        """The answer of `POST /search`.

        Raises:
            FieldError: Vectors of another training or length, or no such index.
        """
        bundle = self._shelf.of(body.model_version, body.version)
        vectors = bundle.as_vectors(body.vectors)

        def search() -> dict[str, Any]:
            items = bundle.search(vectors, body.k, body.exclude, body.index)
            return {"items": items, "model_version": bundle.model_version}

        return await self._in_time(self._searched(bundle, body.index, search))

    async def retrieve(self, body: schemas.Retrieve) -> dict[str, Any]:
        """The answer of `POST /retrieve`: ids of each vector, and the scores of all.

        Raises:
            FieldError: Vectors of another training or length, or no such index.
        """
        bundle = self._shelf.of(body.model_version, body.version)
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

        return await self._in_time(self._searched(bundle, body.index, retrieve))

    async def _searched(
        self, bundle: ServedBundle, index: str, search: Callable[[], Result]
    ) -> Result:
        """The result of a search. The index is opened first, if it is not open yet."""
        loop = asyncio.get_running_loop()
        if index and not bundle.has_open(bundle.require_index(index)):
            await loop.run_in_executor(self._opener, bundle.named, index)
        return await loop.run_in_executor(self._searches, search)

    async def _in_time(self, call: Awaitable[Result]) -> Result:
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
        bundle = self._shelf.of(body.model_version)
        vectors = bundle.as_vectors([item.vector for item in body.add])
        added = {item.item_id: vector for item, vector in zip(body.add, vectors)}
        if len({*added, *body.remove}) < len(body.add) + len({*body.remove}):
            raise FieldError("add", "an item is there twice")

        def change() -> dict[str, Any]:
            self._shelf.change(body.model_version, added, body.remove)
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

        def deploy() -> dict[str, Any]:
            self._shelf.deploy(version)
            return self.status()

        return await self._changed(deploy)

    # Life.

    async def start(self) -> None:
        """Begins to follow the registry."""
        self._follower = asyncio.create_task(self._keep_following())
        self.is_ready = True

    async def _keep_following(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW)
            try:
                await self._changed(self._shelf.look)
            except Exception:  # a full disk, say; the next look may succeed
                LOG.exception("following failed")

    async def stop(self) -> None:
        """Ends the threads."""
        self.is_ready = False
        if self._follower is not None:
            self._follower.cancel()
        for pool in (self._changes, self._searches, self._opener):
            pool.shutdown(wait=True)
        self._shelf.close()

    def status(self) -> dict[str, Any]:
        """What `GET /readyz` answers."""
        live = self._shelf.held[0].bundle
        return {
            "status": "ready" if self.is_ready else "starting",
            "model_versions": self._shelf.model_versions,
            "versions": [held.version for held in self._shelf.held if held.version],
            "num_items": live.num_items,
            "indexes": ["exact", *live.indexes],
        }

    def metrics_text(self) -> bytes:
        """What `GET /metrics` answers."""
        self.metrics.items.set(self._shelf.held[0].bundle.num_items)
        self.metrics.set_live(self._shelf.model_versions)
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
