"""Service: pipeline, sessions, events and items together, as the routes of `app.py` call them."""

import asyncio
import concurrent.futures
import dataclasses
import logging
import math
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twotower.funnel.answer import Answer, NoSourceError
from twotower.serving import schemas
from twotower.serving.asks import Ask, FieldError
from twotower.serving.batching import Batcher
from twotower.serving.bodies import ask_of
from twotower.serving.checks import Checks
from twotower.serving.deployer import Deployer
from twotower.serving.events import EventLog
from twotower.serving.histories import Histories
from twotower.serving.index_client import IndexCallError
from twotower.serving.items_file import ItemsFile
from twotower.serving.journal import Journal
from twotower.serving.live import Live
from twotower.serving.metrics import Metrics
from twotower.serving.pipeline import Encoded, Pipeline
from twotower.serving.registry import Registry
from twotower.serving.served_bundle import ServedBundle
from twotower.serving.sessions import Deed, Session, Sessions
from twotower.serving.store import MemoryStore, Store, StoreError

if TYPE_CHECKING:  # an extra, which is imported where traces are asked for
    from twotower.serving.tracing import Tracing

# Seconds from one look for another active version, and for changes of items by other processes, to
# the next; and from one write of events and items as Parquet to the next.
FOLLOW, FLUSH = 0.5, 60.0
# What the answer to a change of items says.
NOTED = (
    "added items are answered from now on, by other processes of this service within a second, and "
    "unknown in histories until the next export"
)
LOG = logging.getLogger("twotower.serving")


class LateError(Exception):
    """The deadline of a request passed before it was answered."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Choices of a service.

    Attributes:
        max_batch: Most requests that are answered by one call.
        max_wait: Seconds that a request may wait for others, if there are any.
        deadline: Seconds after which a request is given up.
    """

    max_batch: int = 64
    max_wait: float = 0.002
    deadline: float = 2.0


class Service:
    """Answers requests from the live pipeline, and changes its state.

    Args:
        live: The pipelines that answer.
        state: Folder for events and changes of items; made where it does not exist.
        store: Where sessions are kept; in memory by default.
        histories: Histories of known users; None if there are none.
        options: Sizes of batches, waits and the deadline.
        registry: The registry whose active version is served; None to serve one bundle only.
        load: Opens a bundle's folder as a pipeline, for deploys.
        checks: What a bundle must show before it serves.
        lacks: (training, version) -> why an index process cannot answer for it yet, "" if it can;
            None if the indexes are in this process.
        tracing: Makes the spans of requests; None for no traces.
    """

    def __init__(
        self,
        live: Live,
        state: str | pathlib.Path,
        store: Store | None = None,
        histories: Histories | None = None,
        options: Options | None = None,
        registry: Registry | None = None,
        load: Callable[[pathlib.Path], Pipeline] = Pipeline,
        checks: Checks | None = None,
        lacks: Callable[[str, str], str] | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self.options, self.metrics, self.tracing = options or Options(), Metrics(), tracing
        self.store = store or MemoryStore()
        self.sessions, self._histories = Sessions(self.store), histories
        state = pathlib.Path(state)
        state.mkdir(parents=True, exist_ok=True)
        self.event_log, self.journal = EventLog(state / "events"), Journal(state / "items.sqlite")
        self.items_file = ItemsFile(state / "items.parquet", self.journal.id)
        for pipeline in live.pipelines:
            try:
                self._prepare(pipeline)
            except IndexCallError as error:  # other sources answer; `_look` sends the items later
                LOG.error("added items are not in the index yet: %s", error)
        self._deployer = Deployer(
            live, registry, load, self._prepare, checks or Checks(), self.metrics, lacks
        )
        self.is_ready = False
        self._batcher: Batcher[tuple[schemas.Recommend, Any], dict[str, Any]] = Batcher(
            self._recommend, self.options.max_batch, self.options.max_wait, self._observe
        )
        self._events: Batcher[schemas.Events, None] = Batcher(self._note, 256, 0.0)
        # Changes of items and deploys, one after another; and everything else that takes long.
        self._changes = concurrent.futures.ThreadPoolExecutor(1, "changes")
        self._others = concurrent.futures.ThreadPoolExecutor(2, "others")
        self._opener = concurrent.futures.ThreadPoolExecutor(1, "opener")
        self._follower: asyncio.Task | None = None

    @property
    def live(self) -> Live:
        """The pipelines that answer. A deploy may come between two reads: read it once."""
        return self._deployer.live

    # Answers.

    async def recommend(self, body: schemas.Recommend) -> dict[str, Any]:
        """The answer of `POST /recommend`, without its request id.

        Raises:
            FieldError: A value that does not fit the live bundle.
            LateError: The deadline has passed.
        """
        span = None if self.tracing is None else self.tracing.current()
        live = self.live
        pipeline = live.pipelines[live.number_of(body.user_id, body.version)]

        async def answer() -> dict[str, Any]:
            await self._open(pipeline.bundle, body.index)
            if body.diversity is not None and pipeline.funnels.lacks_items(body.funnel):
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._others, pipeline.funnels.diversity)
            return await self._batcher.submit((body, span))

        return await self._in_time(answer())

    async def _open(self, bundle: ServedBundle, index: str) -> None:
        """Opens an index that nobody has asked for so far, in a thread of its own: only those who
        ask for it wait.

        Raises:
            FieldError: The bundle has no such index.
            IndexCallError: It cannot be opened.
        """
        if index and not bundle.has_open(bundle.require_index(index)):
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._opener, bundle.named, index)

    def _recommend(
        self, asked: Sequence[tuple[schemas.Recommend, Any]]
    ) -> list[dict[str, Any] | Exception]:
        """Answers of a batch of bodies with their spans; in the batcher's thread."""
        bodies = [body for body, _ in asked]
        live, is_known = self.live, True
        try:
            sessions = self.sessions.of([body.user_id for body in bodies])
        except StoreError as error:  # an answer without the session is better than none
            LOG.error("sessions are left out: %s", error)
            sessions, is_known = [Session()] * len(bodies), False
        asks = [
            ask_of(body, session, self._histories, span)
            for (body, span), session in zip(asked, sessions)
        ]
        rows: dict[int, list[int]] = {}
        answers: list[Any] = [None] * len(bodies)
        for number, body in enumerate(bodies):
            try:
                rows.setdefault(live.number_of(body.user_id, body.version), []).append(number)
            except FieldError as error:
                answers[number] = error
        for which, numbers in rows.items():
            found = live.pipelines[which].recommend([asks[number] for number in numbers])
            name = live.names[which]
            for number, answer in zip(numbers, found):
                answers[number] = answer
                if isinstance(answer, dict):
                    answer["version"] = name
        if not is_known:
            for body, answer in zip(bodies, answers):
                if body.user_id and isinstance(answer, dict):
                    answer["missing"]["sessions"] = "the store does not answer"
        self._count(answers)
        return answers

    def _count(self, answers: Sequence[dict[str, Any] | Exception]) -> None:
        for answer in answers:
            missing: Iterable[str] = ()
            if isinstance(answer, NoSourceError):
                missing = answer.missing
            elif isinstance(answer, dict):
                missing = answer["missing"]
                self.metrics.empty.inc(not answer["items"])
            for name in missing:
                self.metrics.missing.labels(name).inc()

    async def embed(self, body: schemas.Embed) -> dict[str, Any]:
        """The answer of `POST /embed`: each vector is of the version that recommends to its user.

        Raises:
            FieldError: Points on a map, of a bundle without one.
        """
        live = self.live

        def embed() -> dict[str, Any]:
            users = [request.user_id for request in body.requests]
            sessions = self.sessions.of(users)
            asks = [
                ask_of(request, known, self._histories)
                for request, known in zip(body.requests, sessions)
            ]
            numbers = [live.number_of(user) for user in users]
            answered: list[Any] = [None] * len(asks)
            for number in {*numbers}:
                pipeline = live.pipelines[number]
                rows = [row for row, chosen in enumerate(numbers) if chosen == number]
                vectors, unknown = pipeline.embed([asks[row] for row in rows])
                points = pipeline.map.locate(vectors) if body.on_map else [None] * len(rows)
                for row, *found in zip(rows, vectors.tolist(), unknown, points):
                    answered[row] = pipeline.model_version, *found
            versions, vectors, unknown, points = map(list, zip(*answered))
            return {
                "model_versions": versions,
                "vectors": vectors,
                "unknown": unknown,
                **({"points": points} if body.on_map else {}),
                # No search takes vectors of several trainings, so these have no common version.
                "model_version": versions[0] if len({*versions}) == 1 else "",
            }

        return await self._elsewhere(embed)

    async def search(self, body: schemas.Search) -> dict[str, Any]:
        """The answer of `POST /search`.

        Raises:
            FieldError: Vectors of another training or length, or no such index.
        """
        pipeline = self.live.of_training(body.model_version, body.version)
        await self._in_time(self._open(pipeline.bundle, body.index))

        def search() -> dict[str, Any]:
            vectors = pipeline.bundle.as_vectors(body.vectors)
            rows = pipeline.bundle.search(vectors, body.k, body.exclude, body.index)
            return {"items": rows, "model_version": pipeline.model_version}

        return await self._elsewhere(search)

    async def item_map(self, model_version: str = "", version: str = "") -> tuple[bytes, str]:
        """The answer of `GET /map` as JSON, and its ETag.

        Raises:
            FieldError: No such training or version is loaded, or its bundle has no map.
        """
        pipeline = self.live.of_training(model_version, version)
        return await self._elsewhere(pipeline.map.body)

    async def similar(self, body: schemas.Similar) -> dict[str, Any]:
        """The answer of `POST /similar`."""
        pipeline = self.live.of_user(body.user_id)
        await self._in_time(self._open(pipeline.bundle, body.index))

        def similar() -> dict[str, Any]:
            items = pipeline.bundle.similar(body.item_id, body.k, body.index)
            return {"items": items, "model_version": pipeline.model_version}

        return await self._elsewhere(similar)

    async def onboarding(self, size: int, user_id: str = "") -> dict[str, Any]:
        """The answer of `GET /onboarding`: of the version that recommends to the user."""
        pipeline = self.live.of_user(user_id)

        def onboarding() -> dict[str, Any]:
            items, chosen = pipeline.onboarding(size)
            return {"items": items, "chosen": chosen, "model_version": pipeline.model_version}

        return await self._elsewhere(onboarding)

    async def titles(
        self, text: str, ids: Sequence[str], k: int, user_id: str = ""
    ) -> dict[str, Any]:
        """The answer of `GET /titles`: of the version that recommends to the user."""
        pipeline = self.live.of_user(user_id)

        def titles() -> dict[str, Any]:
            bundle = pipeline.bundle
            items = bundle.items_of(ids) if ids else bundle.titles(text, k)
            return {"items": items, "model_version": pipeline.model_version}

        return await self._elsewhere(titles)

    def choices(self, user_id: str = "") -> dict[str, Any]:
        """The answer of `GET /choices`: of the version that recommends to the user."""
        live = self.live
        number = live.number_of(user_id)
        pipeline = live.pipelines[number]
        return {
            **pipeline.choices(),
            "num_items": pipeline.bundle.num_items,
            "versions": live.names,
            "version": live.names[number],
            "knows_histories": self._histories is not None,
            "model_version": pipeline.model_version,
        }

    async def _in_time(self, call: Any) -> Any:
        try:
            return await asyncio.wait_for(call, self.options.deadline)
        except TimeoutError as error:
            raise LateError from error

    async def _elsewhere(self, function: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        return await self._in_time(loop.run_in_executor(self._others, function))

    def _observe_funnel(self, asks: Sequence[Ask], answer: Answer, encoded: Encoded) -> None:
        if encoded is not None:
            self.metrics.stage_seconds.labels("encode").observe(encoded[1] - encoded[0])
        for step in answer.steps:
            self.metrics.stage_seconds.labels(step.name).observe(step.seconds)
        self.metrics.fallback.inc(answer.fallback)
        if self.tracing is not None:
            self.tracing.steps(asks, answer, encoded)

    def _observe(self, size: int, waited: float) -> None:
        self.metrics.batch.observe(size)
        self.metrics.wait.observe(waited)

    # Changes.

    async def note(self, body: schemas.Events) -> None:
        """Records events: on disk and in the sessions when this returns.

        Events that are refused are in neither, with three exceptions. If the store does not answer
        and the disk then fails too, the events stay in the log. They also stay there if they are
        moved into a part file before the store fails. If the store adds them and answers too late,
        they stay in the session.

        Raises:
            StoreError: The store of the sessions does not answer.
            sqlite3.Error: Nothing could be written, as on a full disk.
        """
        await self._events.submit(body)
        for event in body.events:
            self.metrics.events.labels(event.event).inc()

    def _note(self, bodies: Sequence[schemas.Events]) -> list[None]:
        now = int(time.time())
        rows = [
            {**event.model_dump(), "timestamp": now if event.timestamp is None else event.timestamp}
            for body in bodies
            for event in body.events
        ]
        deeds = [
            (
                row["user_id"],
                Deed(
                    row["item_id"],
                    row["event"],
                    # A clock that is fast would put this event after all that follow.
                    min(row["timestamp"], now),
                    math.nan if row["rating"] is None else row["rating"],
                ),
            )
            for row in rows
        ]
        # The log first: events can be removed from it again, and not from a session.
        numbers = self.event_log.append(rows)
        try:
            self.sessions.add(deeds)
        except StoreError:
            try:
                self.event_log.remove(numbers)
            except sqlite3.Error as error:
                LOG.error("%d refused events stay in the log: %s", len(numbers), error)
            raise
        self.event_log.flush_full()
        return [None] * len(bodies)

    async def change_items(self, body: schemas.Items) -> dict[str, Any]:
        """Adds and removes items: on disk when this returns, and in the indexes of this process. An
        index process that does not answer has them later.

        Raises:
            FieldError: Items that do not fit the catalogue; nothing is changed then.
        """
        if not body.add and not body.remove:
            raise FieldError("add", "expected items to add or to remove")
        ids = [item.item_id for item in body.add]
        if len({*ids, *body.remove}) < len(ids) + len({*body.remove}):
            raise FieldError("add", "an item is there twice")

        def change() -> dict[str, Any]:
            live = self.live
            added = [item.model_dump() for item in body.add]
            main = live.pipelines[0]
            keys = main.catalogue.keys_of(body.remove)
            if unknown := [item for item, key in zip(body.remove, keys) if key < 0]:
                raise FieldError("remove", f"not in the catalogue: {unknown[:5]}")
            try:
                for pipeline in live.pipelines:
                    pipeline.check_items(added)
            except ValueError as error:
                raise FieldError("add", str(error)) from error
            sequence = self.journal.append(added, body.remove)
            note = NOTED
            try:
                self._catch_up()
            except IndexCallError as error:  # `_look` sends them later
                LOG.error("changes of items wait for the index: %s", error)
                note = f"the changes are kept, and searched once the index has them: {error}"
            return {
                "sequence": sequence,
                "num_items": main.bundle.num_items,
                "model_version": main.model_version,
                "note": note,
            }

        return await self._changed(change)

    def _catch_up(self) -> None:
        """Applies the changes of items that the live pipelines lack."""
        for pipeline in self.live.pipelines:
            pipeline.apply(self.journal.since(pipeline.sequence))
        for pipeline in self.live.pipelines:
            pipeline.bundle.send_changes()

    def _prepare(self, pipeline: Pipeline) -> None:
        """Applies all changes of items to a bundle that was just opened."""
        pipeline.observe = self._observe_funnel
        exported = self.journal.exported(pipeline.model_version)
        pipeline.apply(self.journal.since(0), exported)
        pipeline.bundle.send_changes()

    # Deploys.

    async def deploy(self, version: str, share: float = 1.0) -> dict[str, Any]:
        """Makes a version of the registry live; see `Deployer.deploy`."""
        await self._changed(lambda: self._deployer.deploy(version, share))
        return self.status()

    async def roll_back(self) -> dict[str, Any]:
        """Ends the canary, or goes back to the previous version; see `Deployer.roll_back`."""
        await self._changed(self._deployer.roll_back)
        return self.status()

    def deploys(self) -> dict[str, Any]:
        """What `GET /deploys` answers."""
        return {**self.status(), **self._deployer.described()}

    async def _changed(self, change: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._changes, change)

    # Life.

    async def start(self) -> None:
        """Warms the pipelines and begins to follow the registry and the journal."""
        loop = asyncio.get_running_loop()
        for pipeline in self.live.pipelines:
            await loop.run_in_executor(self._changes, pipeline.warm)
        self._follower = asyncio.create_task(self._keep_following())
        self.is_ready = True

    async def _keep_following(self) -> None:
        """Looks now and then for what other processes have changed."""
        loop, flushed = asyncio.get_running_loop(), time.monotonic()
        while True:
            await asyncio.sleep(FOLLOW)
            try:
                await loop.run_in_executor(self._changes, self._look)
                if time.monotonic() - flushed > FLUSH:
                    flushed = time.monotonic()
                    await loop.run_in_executor(self._others, self._flush)
            except Exception:  # a full disk, say; the next look may succeed
                LOG.exception("following failed")

    def _flush(self) -> None:
        """Writes events for training, and then the items, so that those of the events are there."""
        self.event_log.flush()
        self.items_file.write(self.live.pipelines[0])

    def _look(self) -> None:
        """Applies changes of items, and deploys what the registry names."""
        try:
            self._catch_up()
        except IndexCallError as error:
            LOG.error("changes of items wait for the index: %s", error)
        self._deployer.look()

    async def stop(self) -> None:
        """Writes what is not yet in a part file, and ends the threads."""
        self.is_ready = False
        if self._follower is not None:
            self._follower.cancel()
        self._batcher.close()
        self._events.close()
        for pool in (self._changes, self._others, self._opener):
            pool.shutdown(wait=True)
        for write in (
            self.event_log.close,
            lambda: self.items_file.write(self.live.pipelines[0]),
        ):
            try:
                write()
            except Exception as error:  # a full disk, say; the next start writes it
                LOG.error("a file for the next training is not written: %s", error)
        self.journal.close()

    def status(self) -> dict[str, Any]:
        """What `GET /readyz` answers."""
        return {
            "status": "ready" if self.is_ready else "starting",
            "model_version": self.live.pipelines[0].model_version,
            "num_items": self.live.pipelines[0].bundle.num_items,
            "funnels": sorted(self.live.pipelines[0].funnels),
            "indexes": ["exact", *self.live.pipelines[0].bundle.indexes],
            "versions": [*self.live.versions],
            "canary_share": self.live.share,
        }

    def metrics_text(self) -> bytes:
        """What `GET /metrics` answers."""
        live, metrics = self.live, self.metrics
        metrics.queued.set(self._batcher.queued)
        metrics.items.set(live.pipelines[0].bundle.num_items)
        metrics.set_live([pipeline.model_version for pipeline in live.pipelines])
        metrics.cache_hits.set(sum(p.cache.hits for p in live.pipelines))
        metrics.cache_misses.set(sum(p.cache.misses for p in live.pipelines))
        return metrics.text()
