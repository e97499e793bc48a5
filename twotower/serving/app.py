"""The routes: bodies in, answers out. What they do stands in `service.py`."""

import contextlib
import hashlib
import logging
import pathlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from twotower import __version__
from twotower.serving import schemas
from twotower.serving.asks import FieldError
from twotower.serving.deployer import DeployRefused
from twotower.serving.guard import Guard, Limits, error_body
from twotower.serving.service import LateError, Service
from twotower.serving.store import StoreError

LOG = logging.getLogger("twotower.serving")
PAGE = pathlib.Path(__file__).parent / "page"
# The page runs its own files alone and asks its own service alone, whatever a title contains.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
}


class ErrorAnswer(schemas.BaseModel):
    """Answer of every error."""

    error: dict[str, str]
    request_id: str


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer, "description": text}
    for code, text in {
        400: "No JSON.",
        401: "No token, or a wrong one.",
        409: "The bundle is refused; the old one serves on.",
        413: "The body is too large.",
        422: "A field is wrong; `field` names it.",
        429: "Too many requests of this caller; see Retry-After.",
        503: "Too many requests, or one that took too long; see Retry-After.",
    }.items()
}


def create_app(service: Service, limits: Limits | None = None) -> Any:
    """The ASGI app of a service.

    Args:
        service: What answers.
        limits: What is refused.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="twotower", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )

    def post(path: str, model: Any = None, **more: Any) -> Any:
        return app.post(path, responses=ERRORS, response_model=model, **more)

    @post("/recommend", schemas.Recommended)
    async def recommend(body: schemas.Recommend, request: Request) -> Response:
        """The best items for a user, a history or a search text."""
        answer = await service.recommend(body)
        return _json({**answer, "request_id": request.state.request_id})

    @post("/embed")
    async def embed(body: schemas.Embed) -> Response:
        """Query vectors of requests."""
        return _json(await service.embed(body))

    @post("/search")
    async def search(body: schemas.Search) -> Response:
        """The items nearest to query vectors."""
        return _json(await service.search(body))

    @post("/similar")
    async def similar(body: schemas.Similar) -> Response:
        """The items nearest to an item."""
        return _json(await service.similar(body))

    @post("/events", status_code=202)
    async def events(body: schemas.Events) -> Response:
        """Records what users did; their next answers know of it."""
        await service.note(body)
        return _json({"accepted": len(body.events)}, 202)

    @post("/items")
    async def items(body: schemas.Items) -> Response:
        """Adds items, replaces those that are there, and removes items."""
        return _json(await service.change_items(body))

    @app.get("/deploys", responses=ERRORS)
    async def deploys() -> Response:
        """The registry's versions, what is live, and why versions were refused."""
        return _json(service.deploys())

    @post("/deploys")
    async def deploy(body: schemas.Deploy) -> Response:
        """Checks a version of the registry and makes it live, or the canary for a share."""
        return _json(await service.deploy(body.version, body.share))

    @post("/deploys/rollback")
    async def roll_back() -> Response:
        """Ends the canary, or makes the previous version live again."""
        return _json(await service.roll_back())

    @app.get("/onboarding", responses=ERRORS)
    async def onboarding(
        size: Annotated[int, Query(ge=1, le=schemas.MAX_K)] = 20,
    ) -> Response:
        """Items to ask a new user about; those that the user picks are the history of a request.

        `chosen` is `telling` for items whose picks tell most of a taste, else `popular`.
        """
        return _json(await service.onboarding(size))

    @app.get("/titles", responses=ERRORS)
    async def titles(
        search: Annotated[str, Query(max_length=schemas.MAX_TEXT)] = "",
        item_id: Annotated[list[schemas.Id], Query(max_length=schemas.MAX_ROWS)] = [],  # noqa: B006
        k: Annotated[int, Query(ge=1, le=schemas.MAX_K)] = 20,
    ) -> Response:
        """Items by words of their titles; or by their ids, of which unknown ones are left out."""
        return _json(await service.titles(search, item_id, k))

    @app.get("/map", responses=ERRORS | {304: {"description": "The map is the one of the ETag."}})
    async def item_map(
        request: Request,
        model_version: Annotated[str, Query(max_length=64)] = "",
    ) -> Response:
        """A map of the items, where similar ones are neighbours: ids, x and y from 0 to 1, and of
        each item its first genre, as a number among `genres`."""
        body = orjson.dumps(await service.item_map(model_version))
        tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        # It is asked for again each time, and sent again where it has changed.
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    @app.get("/choices", responses=ERRORS)
    async def choices() -> Response:
        """What a request may choose: funnels and their objectives, indexes, inputs, genres,
        versions."""
        return _json(service.choices())

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The playground, which asks the other routes."""
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether the process answers."""
        return _json({"status": "ok"})

    @app.get("/readyz", responses={503: ERRORS[503]})
    async def readyz() -> Response:
        """Whether the service answers, and what is live."""
        return _json(service.status(), 200 if service.is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters, in Prometheus' text format."""
        return Response(service.metrics_text(), media_type="text/plain; version=0.0.4")

    def error(request: Request, status: int, code: str, message: str, field: str = "") -> Response:
        body = error_body(code, message, request.state.request_id, field)
        headers = {"Retry-After": "1"} if status == 503 else None
        return Response(body, status, headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, wrong: RequestValidationError) -> Response:
        first = wrong.errors()[0]
        # Neither the value, which may be long, nor the name of a type of this code.
        field = ".".join(str(part)[:64] for part in first["loc"] if part != "body")
        return error(request, 422, "invalid", str(first["msg"])[:300], field)

    @app.exception_handler(FieldError)
    async def unfit(request: Request, wrong: FieldError) -> Response:
        return error(request, 422, "invalid", str(wrong)[:300], wrong.field)

    @app.exception_handler(LateError)
    async def late(request: Request, _: LateError) -> Response:
        return error(request, 503, "late", "the deadline passed; come back later")

    @app.exception_handler(StoreError)
    async def no_store(request: Request, wrong: StoreError) -> Response:
        LOG.error("request %s: %s", request.state.request_id, wrong)
        return error(request, 503, "store", "the store does not answer; come back later")

    @app.exception_handler(DeployRefused)
    async def not_deployed(request: Request, wrong: DeployRefused) -> Response:
        # What a check found is for the administrator, and may name the registry's folder.
        text = f"failed checks: {len(wrong.reasons)}; GET /deploys and the log have the reasons"
        return error(request, 409, "refused", text, "version")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, wrong: HTTPException) -> Response:
        return error(request, wrong.status_code, "http", str(wrong.detail)[:300])

    @app.exception_handler(Exception)
    async def failed(request: Request, wrong: Exception) -> Response:
        LOG.error("request %s failed", request.state.request_id, exc_info=wrong)
        return error(request, 500, "internal", "the service failed; its log has the reason")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return Guard(app, limits or Limits(), service.metrics)


def _json(answer: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(answer), status, media_type="application/json")
