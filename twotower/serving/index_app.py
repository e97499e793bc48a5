"""The routes of an index process. What they do stands in `index_service.py`."""

from typing import Annotated, Any

from fastapi import Body, Response

from twotower.serving import schemas
from twotower.serving.bare_app import bare_app
from twotower.serving.errors import ERRORS, json_answer
from twotower.serving.guard import Guard, Limits
from twotower.serving.index_service import IndexService


def create_index_app(service: IndexService, limits: Limits | None = None) -> Any:
    """The ASGI app of an index process.

    Args:
        service: What answers.
        limits: What is refused.
    """

    app = bare_app("twotower index", service)

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

    return Guard(app, limits or Limits(), service.metrics, service.tracing)
