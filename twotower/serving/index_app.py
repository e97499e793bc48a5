"""The routes of an index process. What they do stands in `index_service.py`."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Body, FastAPI, Response

from twotower import __version__
from twotower.serving import schemas
from twotower.serving.errors import ERRORS, answer_errors, json_answer
from twotower.serving.guard import Guard, Limits
from twotower.serving.index_service import IndexService


def create_index_app(service: IndexService, limits: Limits | None = None) -> Any:
    """The ASGI app of an index process.

    Args:
        service: What answers.
        limits: What is refused.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()
        if service.tracing is not None:
            service.tracing.close()

    app = FastAPI(
        title="twotower index",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )

    @app.post("/search", responses=ERRORS)
    async def search(body: schemas.Search) -> Response:
        """The items nearest to query vectors."""
        return json_answer(await service.search(body))

    @app.post("/retrieve", responses=ERRORS)
    async def retrieve(body: schemas.Retrieve) -> Response:
        """The ids nearest to query vectors, in few bytes; query processes ask this."""
        return json_answer(await service.retrieve(body))

    @app.post("/items", responses=ERRORS)
    async def items(body: schemas.Vectors) -> Response:
        """Adds items by their vectors, replaces those that are there, and removes items."""
        return json_answer(await service.change_items(body))

    @app.post("/deploys", responses=ERRORS)
    async def deploy(version: Annotated[schemas.Name, Body(embed=True)]) -> Response:
        """Checks a version of the registry and holds it beside the others."""
        return json_answer(await service.deploy(version))

    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether the process answers."""
        return json_answer({"status": "ok"})

    @app.get("/readyz", responses={503: ERRORS[503]})
    async def readyz() -> Response:
        """Whether the index answers, and for which trainings."""
        return json_answer(service.status(), 200 if service.is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters, in Prometheus' text format."""
        return Response(service.metrics_text(), media_type="text/plain; version=0.0.4")

    answer_errors(app)
    return Guard(app, limits or Limits(), service.metrics, service.tracing)
