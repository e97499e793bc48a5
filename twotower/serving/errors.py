"""What apps answer where something is wrong: a code, the field, and what to do; never a path."""

import logging
import sqlite3
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from twotower.funnel.answer import NoSourceError
from twotower.serving import schemas
from twotower.serving.asks import FieldError
from twotower.serving.deployer import DeployRefused
from twotower.serving.guard import error_body
from twotower.serving.index_client import IndexCallError
from twotower.serving.pipeline import passing, public
from twotower.serving.service import LateError
from twotower.serving.store import StoreError

LOG = logging.getLogger("twotower.serving")


class ErrorAnswer(schemas.BaseModel):
    """Answer of every error."""

    error: dict[str, str]
    request_id: str


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorAnswer, "description": text}
    for code, text in {
        400: "No JSON.",
        401: "No token, or a wrong one.",
        403: "A page of another origin, or a host that is not answered.",
        408: "The body did not come in time.",
        409: "The bundle is refused; the old one serves on.",
        413: "The body is too large.",
        422: "A field is wrong; `field` names it.",
        429: "Too many requests of this caller; see Retry-After.",
        503: "Too many requests, a missed deadline, or an index process, a store or a disk that "
        "cannot be used now; see Retry-After.",
    }.items()
}

OBJECT = "expected a JSON object, sent with `content-type: application/json`"


def answer_errors(app: FastAPI) -> None:
    """Gives an app the answers to all that its routes may raise."""

    def error(request: Request, status: int, code: str, message: str, field: str = "") -> Response:
        body = error_body(code, message, request.state.request_id, field)
        headers = {"Retry-After": "1"} if status == 503 else None
        return Response(body, status, headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, wrong: RequestValidationError) -> Response:
        first = wrong.errors()[0]
        if first["type"] == "json_invalid":
            text = f"{first['ctx']['error']}, at character {first['loc'][-1]}"
            return error(request, 400, "json", f"expected JSON: {text}"[:300])
        if first["loc"] == ("body",):  # no body, another type, or another content type
            return error(request, 422, "invalid", OBJECT)
        # Neither the value, which may be long, nor the name of a type of this code.
        field = ".".join(str(part)[:64] for part in first["loc"][1:])
        message = str(first["msg"]).removeprefix("Value error, ")
        return error(request, 422, "invalid", message[:300], field)

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

    @app.exception_handler(sqlite3.OperationalError)
    @app.exception_handler(OSError)
    async def no_state(request: Request, wrong: Exception) -> Response:
        # A full or read-only disk of the state or the registry, or a file that another process has
        # locked. No file was changed, so a client may send the request again.
        LOG.error("request %s: the state or the registry: %s", request.state.request_id, wrong)
        return error(request, 503, "state", "this cannot be kept now; come back later")

    @app.exception_handler(IndexCallError)
    async def no_index(request: Request, wrong: IndexCallError) -> Response:
        LOG.error("request %s: %s", request.state.request_id, wrong)
        return error(request, 503, "index", str(wrong)[:300])

    @app.exception_handler(NoSourceError)
    async def no_source(request: Request, wrong: NoSourceError) -> Response:
        if not all(map(passing, wrong.missing.values())):
            return await failed(request, wrong)
        LOG.error("request %s: %s", request.state.request_id, wrong)
        reasons = "; ".join(f"{name}: {public(why)}" for name, why in wrong.missing.items())
        return error(request, 503, "sources", f"no source answered. {reasons}"[:300])

    @app.exception_handler(DeployRefused)
    async def not_deployed(request: Request, wrong: DeployRefused) -> Response:
        # What a check found is for the administrator, and may name the registry's folder.
        text = f"failed checks: {len(wrong.reasons)}; GET /deploys and the log have the reasons"
        return error(request, 409, "refused", text, "version")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, wrong: HTTPException) -> Response:
        if wrong.status_code == 400:
            return error(request, 400, "json", str(wrong.detail)[:300])
        answer = error(request, wrong.status_code, "http", str(wrong.detail)[:300])
        answer.headers.update(wrong.headers or {})  # a 405 names what is allowed
        return answer

    @app.exception_handler(Exception)
    async def failed(request: Request, wrong: Exception) -> Response:
        LOG.error("request %s failed", request.state.request_id, exc_info=wrong)
        return error(request, 500, "internal", "the service failed; its log has the reason")


def json_answer(answer: dict[str, Any], status: int = 200) -> Response:
    """An answer as JSON."""
    return Response(orjson.dumps(answer), status, media_type="application/json")
