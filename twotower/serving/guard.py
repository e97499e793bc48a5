"""Guard: what holds for every request, whatever its route: limits, tokens, ids, logs, counts.

An ASGI middleware around the app, so that a body that is too large or a caller without a token
never reaches a route.
"""

import asyncio
import dataclasses
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import cachetools

from twotower.serving.metrics import Metrics

if TYPE_CHECKING:  # an extra, which is imported where traces are asked for
    from twotower.serving.tracing import Tracing

LOG = logging.getLogger("twotower.serving")
# Request ids that are taken from the caller: no line break or quote can get into the log.
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
ADMIN = ("/items", "/deploys")
OPEN = ("/healthz", "/readyz")
# The playground's files say nothing of the data, so they need no token; the page asks its reader
# for one. It consists of about so many files, so the rate for files is so many times as high.
PAGE, PAGE_FILES = ("/", "/page/"), 10

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a service refuses, and whom.

    Attributes:
        body_bytes: Largest body.
        body_seconds: Seconds within which a body must be there.
        concurrency: Requests under way at once; further ones are told to come back.
        rate: Requests a second and caller, 0 for no limit. A caller is a token that is right, or an
            address; views of the page are counted apart from other requests.
        burst: Requests that a caller may send at once, on top of the rate.
        token: Bearer token of all callers; "" for none.
        admin_token: Bearer token for changes of items and deploys; "" for that of all callers.
        hosts: Names in the header Host that are answered; () for all. Without a token, a web page
            whose own name leads to this machine could otherwise ask and read all.
    """

    body_bytes: int = 1_000_000
    body_seconds: float = 10.0
    concurrency: int = 256
    rate: float = 0.0
    burst: int = 20
    token: str = ""
    admin_token: str = ""
    hosts: Sequence[str] = ()


class Refusal(Exception):
    """A request that is not let through."""

    def __init__(self, status: int, code: str, message: str, retry: int = 0) -> None:
        super().__init__(message)
        self.status, self.code, self.retry = status, code, retry


def error_body(code: str, message: str, request_id: str, field: str = "") -> bytes:
    """The body of every error.

    >>> error_body("late", "too late", "r1")
    b'{"error": {"code": "late", "field": "", "message": "too late"}, "request_id": "r1"}'
    """
    error = {"code": code, "field": field, "message": message}
    return json.dumps({"error": error, "request_id": request_id}).encode()


class Guard:
    """The middleware.

    Args:
        app: The ASGI app inside.
        limits: What to refuse.
        metrics: Where requests are counted.
        tracing: Makes a span for each request; None for no traces.
    """

    def __init__(
        self, app: Any, limits: Limits, metrics: Metrics, tracing: "Tracing | None" = None
    ) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._tracing = tracing
        self._running = 0
        # Caller -> (what is left of the burst, when that was).
        self._callers: Any = cachetools.LRUCache(10_000)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it with an error."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # a GET whose body the server does not send
            scope = {**scope, "method": "GET"}
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        if self._tracing is None or scope["path"] in OPEN:
            await self._answer(scope, headers, receive, send, request_id)
        else:
            with self._tracing.request(headers, scope["method"][:16], request_id) as span:
                await self._answer(scope, headers, receive, send, request_id, span)

    async def _answer(
        self,
        scope: Message,
        headers: dict[bytes, bytes],
        receive: Receive,
        send: Send,
        request_id: str,
        span: Any = None,
    ) -> None:
        """Has a request answered, and counts and logs it."""
        begun, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        self._running += 1
        self._metrics.running.set(self._running)
        try:
            try:
                self._admit(scope, headers)
                body = await self._body(headers, receive)
            except Refusal as refusal:
                await _refuse(answer, refusal, request_id)
            else:
                await self._app(scope, _replayed(body, receive), answer)
        finally:
            self._running -= 1
            self._metrics.running.set(self._running)
            seconds = time.perf_counter() - begun
            # A path that no route has must not become a label each.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._tracing is not None and span is not None:
                self._tracing.answered(span, scope["method"][:16], route, status)
            if LOG.isEnabledFor(logging.INFO):
                line = {
                    "request_id": request_id,
                    "method": scope["method"][:16],
                    "route": route,
                    "status": status,
                    "ms": round(1e3 * seconds, 2),
                }
                LOG.info(line)

    def _admit(self, scope: Message, headers: dict[bytes, bytes]) -> None:
        """Raises Refusal for a caller without a token, or with too many requests."""
        limits, path = self._limits, scope["path"]
        if path in OPEN:  # a balancer asks these also where there is too much to do
            return
        self._check_origin(scope["method"], headers)
        if self._running > limits.concurrency:
            raise Refusal(503, "busy", "too many requests are under way", retry=1)
        is_page = path == PAGE[0] or path.startswith(PAGE[1])
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        given = given.strip() if scheme.lower() == b"bearer" else b""
        is_admin = path.startswith(ADMIN)
        wanted = "" if is_page else (is_admin and limits.admin_token) or limits.token
        is_right = wanted != "" and hmac.compare_digest(given, wanted.encode())
        # A token that was not compared names nobody: each request could bring another one.
        self._take(given if is_right else (scope.get("client") or ("",))[0], is_page)
        if wanted and not is_right:  # counted already, so that tokens are not guessed quickly
            raise Refusal(401, "token", "expected a bearer token")

    def _check_origin(self, method: str, headers: dict[bytes, bytes]) -> None:
        """Raises Refusal for what a web page of another origin has a browser send, and for a host
        that is not answered.

        A browser says in Sec-Fetch-Site whether a request comes from a page of the same origin. An
        older one names that page's origin, and other clients send neither.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
        if self._limits.hosts and name and name.strip("[]") not in self._limits.hosts:
            known = ", ".join(self._limits.hosts)
            raise Refusal(403, "host", f"this service has no token, so it answers only as {known}")
        if method in ("GET", "OPTIONS"):  # these change nothing
            return
        site = headers.get(b"sec-fetch-site", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        is_own = site in ("same-origin", "none") if site else origin.partition("://")[2] == host
        if (site or origin) and not is_own:
            raise Refusal(403, "origin", "a page of another origin may not send this")

    def _take(self, caller: str | bytes, is_page: bool) -> None:
        """Counts a request of a caller; raises Refusal for one too many."""
        times = PAGE_FILES if is_page else 1
        rate, burst = times * self._limits.rate, times * self._limits.burst
        if not rate:
            return
        now = time.monotonic()
        left, before = self._callers.get((caller, is_page), (float(burst), now))
        left = min(burst, left + rate * (now - before))
        self._callers[caller, is_page] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if left < 1:
            wait = max(1, round((1 - left) / rate))
            raise Refusal(429, "rate", "too many requests; come back later", retry=wait)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body; raises Refusal for one that is too large or too slow."""
        most = self._limits.body_bytes
        too_large = Refusal(413, "too_large", f"a body may have {most} bytes")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > most:
            raise too_large
        if not length and b"transfer-encoding" not in headers:
            return b""

        async def read() -> bytes:
            parts, size = [], 0
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(499, "gone", "the client has gone")
                part = message.get("body", b"")
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)

        try:
            return await asyncio.wait_for(read(), self._limits.body_seconds)
        except TimeoutError as error:
            raise Refusal(408, "slow", "the body did not come in time") from error


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, refusal: Refusal, request_id: str) -> None:
    body = error_body(refusal.code, str(refusal), request_id)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if refusal.retry:
        headers.append((b"retry-after", str(refusal.retry).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
