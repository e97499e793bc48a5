"""The routes: bodies in, answers out. What they do stands in `service.py`."""

import pathlib
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from twotower.serving import schemas
from twotower.serving.bare_app import bare_app
from twotower.serving.errors import ERRORS, json_answer
from twotower.serving.guard import Guard, Limits
from twotower.serving.json_route import JsonRoute
from twotower.serving.service import Service

PAGE = pathlib.Path(__file__).parent / "page"
# Query parameters: a user, whose version answers; and a loaded version.
User = Annotated[str, Query(max_length=256)]
Version = Annotated[str, Query(max_length=64)]
# The page runs its own files alone and asks its own service alone, whatever a title contains.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
}


def create_app(service: Service, limits: Limits | None = None) -> Any:
    """The ASGI app of a service.

    Args:
        service: What answers.
        limits: What is refused.
    """
    app = bare_app("twotower", service)
    for routes in (_answers, _changes, _choices):
        app.include_router(routes(service))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The playground, which asks the other routes."""
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return Guard(app, limits or Limits(), service.metrics, service.tracing)


def _answers(service: Service) -> APIRouter:
    """What is found for a user, a vector or an item."""
    router = APIRouter(responses=ERRORS, route_class=JsonRoute)

    @router.post("/recommend", response_model=schemas.Recommended)
    async def recommend(body: schemas.Recommend, request: Request) -> Response:
        """The best items for a user, a history or a search text."""
        answer = await service.recommend(body)
        return json_answer({**answer, "request_id": request.state.request_id})

    @router.post("/embed", response_model=None)
    async def embed(body: schemas.Embed) -> Response:
        """Query vectors of requests, each by the version that recommends to its user.

        `model_versions` names the training of each vector. If all vectors are of one training,
        `model_version` names it; if a canary answers some of these users, `model_version` is
        empty. `/search` takes vectors of one training, so call it once for each.
        """
        return json_answer(await service.embed(body))

    @router.post("/search", response_model=None)
    async def search(body: schemas.Search) -> Response:
        """The items nearest to query vectors."""
        return json_answer(await service.search(body))

    @router.post("/similar", response_model=None)
    async def similar(body: schemas.Similar) -> Response:
        """The items nearest to an item."""
        return json_answer(await service.similar(body))

    return router


def _changes(service: Service) -> APIRouter:
    """What changes later answers: events, items, deploys."""
    router = APIRouter(responses=ERRORS, route_class=JsonRoute)

    @router.post("/events", status_code=202, response_model=None)
    async def events(body: schemas.Events) -> Response:
        """Records what users did; their next answers know of it."""
        await service.note(body)
        return json_answer({"accepted": len(body.events)}, 202)

    @router.post("/items", response_model=None)
    async def items(body: schemas.Items) -> Response:
        """Adds items, replaces those that are there, and removes items."""
        return json_answer(await service.change_items(body))

    @router.get("/deploys")
    async def deploys() -> Response:
        """The registry's versions, what is live, and why versions were refused."""
        return json_answer(service.deploys())

    @router.post("/deploys", response_model=None)
    async def deploy(body: schemas.Deploy) -> Response:
        """Checks a version of the registry and makes it live, or the canary for a share."""
        return json_answer(await service.deploy(body.version, body.share))

    @router.post("/deploys/rollback", response_model=None)
    async def roll_back() -> Response:
        """Ends the canary, or makes the previous version live again."""
        return json_answer(await service.roll_back())

    return router


def _choices(service: Service) -> APIRouter:
    """What a client may choose from."""
    router = APIRouter(responses=ERRORS, route_class=JsonRoute)

    @router.get("/onboarding")
    async def onboarding(
        size: Annotated[int, Query(ge=1, le=schemas.MAX_K)] = 20,
        user_id: User = "",
    ) -> Response:
        """Items to ask a new user about; those that the user picks are the history of a request.

        `chosen` is `telling` for items whose picks tell most of a taste, else `popular`. With
        `user_id` they come from the version that recommends to this user.
        """
        return json_answer(await service.onboarding(size, user_id))

    @router.get("/titles")
    async def titles(
        search: Annotated[str, Query(max_length=schemas.MAX_TEXT)] = "",
        item_id: Annotated[list[schemas.Id], Query(max_length=schemas.MAX_ROWS)] = [],  # noqa: B006
        k: Annotated[int, Query(ge=1, le=schemas.MAX_K)] = 20,
        user_id: User = "",
    ) -> Response:
        """Items by words of their titles; or by their ids, of which unknown ones are left out.

        With `user_id` they are those of the version that recommends to this user.
        """
        return json_answer(await service.titles(search, item_id, k, user_id))

    @router.get(
        "/map", responses={304: {"description": "The map has not changed since the given ETag."}}
    )
    async def item_map(
        request: Request,
        model_version: Version = "",
        version: Version = "",
    ) -> Response:
        """A map of the items, where similar ones are neighbours: ids, x and y from 0 to 1, and of
        each item its first genre, as a number among `genres`.

        `version` names the loaded version whose map this is. By default it is the first loaded
        version of the training `model_version`, or the live version if neither is given.
        """
        body, tag = await service.item_map(model_version, version)
        # It is asked for again each time, and sent again where it has changed.
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    @router.get("/choices")
    async def choices(user_id: User = "") -> Response:
        """What a request may choose: funnels with their objectives and the exported weights of
        these, indexes, inputs, genres, versions.

        A canary may have other funnels and indexes than the live version. With `user_id` this is
        what the version that recommends to this user has. `version` is its name, one of `versions`,
        and `model_version` is its training.
        """
        return json_answer(service.choices(user_id))

    return router
