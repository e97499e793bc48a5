"""Deployer: which pipelines are live, and how others take their place while they answer."""

import contextlib
import dataclasses
import gc
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twotower.bundle.manifest import read_manifest
from twotower.serving.asks import FieldError
from twotower.serving.checks import Checks, failed
from twotower.serving.live import Live
from twotower.serving.metrics import Metrics
from twotower.serving.pipeline import Pipeline
from twotower.serving.registry import Active, Registry, verify

LOG = logging.getLogger("twotower.serving")
# Seconds after which a thread lets go of the interpreter for another one while a bundle is loaded:
# each thread that a request passes through waits so long. At other times, so short an interval
# would only make threads of requests change places.
SWITCH_INTERVAL = 0.0001
# Seconds that the thread which loads a bundle works, and rests then.
WORK, REST = 0.001, 0.003


def note_refused(registry: Registry, version: str, reasons: Sequence[str]) -> None:
    """Notes why a version is refused. On a full or read-only disk, only the log has the reasons."""
    try:
        registry.refuse(version, list(reasons))
    except OSError as error:
        LOG.error("the registry does not note that %s is refused: %s", version, error)


@contextlib.contextmanager
def in_the_background() -> Iterator[None]:
    """Lets the other threads go first: in this context the thread rests again and again, and others
    wait no longer than `SWITCH_INTERVAL` for the interpreter.

    TensorFlow reads SavedModels in Python. So without rests a bundle that is loaded would take one
    core, and hold the interpreter whenever a thread that answers a request wants it.
    """
    interval, profile = sys.getswitchinterval(), sys.getprofile()
    rested = time.perf_counter()

    def rest(*_: Any) -> None:  # at each call of a function and at its end
        nonlocal rested
        if time.perf_counter() - rested > WORK:
            time.sleep(REST)
            rested = time.perf_counter()

    sys.setswitchinterval(min(interval, SWITCH_INTERVAL))
    sys.setprofile(rest)
    try:
        yield
    finally:
        sys.setprofile(profile)
        sys.setswitchinterval(interval)


class DeployRefused(Exception):
    """A bundle is not made live; `reasons` has a line for each reason.

    >>> DeployRefused(["recall@100: 0.4; expected 0.95 or more"]).reasons
    ['recall@100: 0.4; expected 0.95 or more']
    """

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)


class Deployer:
    """Holds what is live. One thread at a time may call its methods, while others read `live`.

    Args:
        live: The pipelines that answer at first; with a registry, it names their versions.
        registry: Where versions come from; None to serve one bundle only.
        load: Opens a bundle's folder as a pipeline.
        prepare: Applies all changes of items to a pipeline that was just opened.
        checks: What a bundle must show before it serves.
        metrics: Where deploys are counted.
        lacks: (training, version) -> why an index process cannot answer for it yet, "" if it can;
            None if the indexes are in this process.

    Attributes:
        live: The pipelines that answer now.
    """

    def __init__(
        self,
        live: Live,
        registry: Registry | None,
        load: Callable[[pathlib.Path], Pipeline],
        prepare: Callable[[Pipeline], None],
        checks: Checks,
        metrics: Metrics,
        lacks: Callable[[str, str], str] | None = None,
    ) -> None:
        self._registry, self._load = registry, load
        self._prepare, self._checks, self._metrics = prepare, checks, metrics
        self._lacks = lacks
        # What the registry named when it was followed last. A process that starts may have read the
        # registry before another one changed it.
        version, canary, *_ = *live.versions, "", ""
        self._served = version, canary, live.share
        self.live = live

    @property
    def registry(self) -> Registry:
        """The registry.

        Raises:
            FieldError: There is none.
        """
        if self._registry is None:
            raise FieldError("version", "this service has no registry")
        return self._registry

    def deploy(self, version: str, share: float = 1.0) -> None:
        """Makes a version live, or the canary of a share of the users below 1.

        Raises:
            FieldError: No registry, or no such version.
            DeployRefused: A check failed; what was live stays.
            OSError: The registry cannot be written; what was live stays.
        """
        registry = self.registry
        if version not in registry.versions:
            raise FieldError("version", f"expected one of {registry.versions[-10:]}")
        if share < 1:
            if not registry.active.version:
                raise FieldError("share", "a canary needs an active version beside it")
            if version == registry.active.version:
                raise FieldError("version", "this is the active version; a canary is another one")
            wanted = dataclasses.replace(registry.active, canary=version, share=share)
        else:
            wanted = Active(version)
        if why := self._missing(wanted):
            raise FieldError("version", why)
        with self._undo_on_error():
            self._follow(wanted, self._checks)
            registry.activate(version, share)
        self._served = wanted.served

    def roll_back(self) -> None:
        """Ends the canary, or makes the previous version live.

        Raises:
            FieldError: No registry, no previous version, or another process has changed what is
                active meanwhile.
            DeployRefused: A check failed; what was live stays.
            OSError: As in `deploy`.
        """
        now = self.registry.active
        if now.canary:
            wanted = Active(now.version)
        elif now.previous in self.registry.versions:
            wanted = Active(now.previous)
        else:
            raise FieldError("version", "there is no previous version")
        if why := self._missing(wanted):
            raise FieldError("version", why)
        # Its figures may be worse than those of what serves, which somebody has reasons to leave.
        with self._undo_on_error():
            self._follow(wanted, dataclasses.replace(self._checks, quality=0.0))
            try:
                self.registry.roll_back(now)
            except ValueError as error:
                raise FieldError("version", str(error)) from error
        self._served = wanted.served

    @contextlib.contextmanager
    def _undo_on_error(self) -> Iterator[None]:
        """Puts back what was live if the registry cannot be written, as on a full disk. Otherwise
        this process would serve another version than other processes, or itself after a restart."""
        before = self.live
        try:
            yield
        except Exception:
            self.live = before
            raise

    def look(self) -> None:
        """Makes live what the registry names, once an index process elsewhere has it. What was
        refused is not tried again before the registry names something else."""
        if self._registry is None:
            return
        wanted = self._registry.active
        if wanted.version and wanted.served != self._served:
            if why := self._missing(wanted):
                LOG.info("version %s waits: %s", wanted.version, why)
                return
            self._served = wanted.served
            try:
                self._follow(wanted, self._checks)
            except DeployRefused:
                return  # logged, and noted in the registry

    def _missing(self, wanted: Active) -> str:
        """Why an index process elsewhere cannot answer for what is wanted; "" where it can."""
        for version in (wanted.version, wanted.canary):
            if self._lacks is not None and version in self.registry.versions:
                training = read_manifest(self.registry.path(version))["model_version"]
                if why := self._lacks(training, version):
                    return why
        return ""

    def described(self) -> dict[str, Any]:
        """Versions, what is active, and why versions were refused; without a registry there are
        none."""
        if self._registry is None:
            return {"versions": [], "active": dataclasses.asdict(Active()), "refused": {}}
        registry = self._registry
        found: dict[str, list[str]] = {}
        for version in registry.versions:
            # A reason may name a file, of which the path inside the registry is enough.
            reasons = [r.replace(str(registry.folder), "") for r in registry.refused(version)]
            found |= {version: reasons} if reasons else {}
        active = dataclasses.asdict(registry.active)
        return {"versions": registry.versions, "active": active, "refused": found}

    def _follow(self, wanted: Active, checks: Checks) -> None:
        """Makes live what is wanted, in one step.

        Raises:
            DeployRefused: A check failed; what was live stays.
        """
        versions = [version for version in (wanted.version, wanted.canary) if version]
        known = dict(zip(self.live.versions, self.live.pipelines))
        pipelines = [known.get(v) or self._opened(v, checks) for v in versions]
        self.live = Live(tuple(pipelines), wanted.share, tuple(versions))
        self._metrics.deploys.labels("live").inc()
        LOG.info("live: %s", ", ".join(versions))

    def _opened(self, version: str, checks: Checks) -> Pipeline:
        """The pipeline of a version, warm and checked.

        Raises:
            DeployRefused: A check failed.
        """
        try:
            with in_the_background():
                # Full collections are rare (process.py), and a replaced bundle stays in reference
                # cycles until the next one. After forty deploys, such bundles held gigabytes.
                gc.collect()
                folder = self.registry.path(version)
                verify(folder)
                pipeline = self._load(folder)
                self._prepare(pipeline)
                pipeline.warm()
                reasons = failed(pipeline, self.live.pipelines[0], checks)
        except Exception as error:  # whatever a damaged bundle raises: it does not serve
            reasons = [f"{type(error).__name__}: {error}"]
        if reasons:
            self._metrics.deploys.labels("refused").inc()
            note_refused(self.registry, version, reasons)
            LOG.error("version %s is refused: %s", version, "; ".join(reasons))
            raise DeployRefused(reasons)
        self.registry.accept(version)
        return pipeline
