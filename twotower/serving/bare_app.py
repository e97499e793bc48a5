"""What the apps of all roles have: a life, probes, metrics, and answers to errors."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from twotower import __version__
from twotower.serving.errors import ERRORS, answer_errors, json_answer
from twotower.serving.index_service import IndexService
from twotower.serving.json_route import JsonRoute
from twotower.serving.service import Service


def bare_app(title: str, service: Service | IndexService) -> FastAPI:
    """An app that starts and ends with its service, and has no routes but those of operation.

    Args:
        title: Name in the OpenAPI document.
        service: What answers.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        service.metrics.processes.set(1)
        yield
        await service.stop()
        if service.tracing is not None:
            service.tracing.close()

    app = FastAPI(
        title=title, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )

    app.router.route_class = JsonRoute

    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether the process answers."""
        return json_answer({"status": "ok"})

    @app.get("/readyz", responses={503: ERRORS[503]})
    async def readyz() -> Response:
        """Whether the service answers, and what it answers with."""
        return json_answer(service.status(), 200 if service.is_ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters, in Prometheus' text format."""
        return Response(service.metrics_text(), media_type="text/plain; version=0.0.4")

    answer_errors(app)
    return app
