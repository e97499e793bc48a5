"""JsonRoute: routes whose bodies are JSON that has one meaning, and whose parameters are known."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request
from fastapi.routing import APIRoute

from twotower.serving.asks import FieldError


class JsonRequest(Request):
    """A request whose body is refused if an object has a name twice.

    Readers of JSON differ in which value they keep. The standard library keeps the last one, so a
    list of items to add could be lost silently.
    """

    async def json(self) -> Any:
        """The body.

        Raises:
            json.JSONDecodeError: No JSON.
            HTTPException: JSON that is not read, with status 400 and the reason.
        """
        try:
            return json.loads(await self.body(), object_pairs_hook=_unique)
        except json.JSONDecodeError:
            raise
        except UnicodeDecodeError as error:
            raise HTTPException(400, "expected JSON in UTF-8, not compressed") from error
        except RecursionError as error:
            raise HTTPException(400, "expected JSON with fewer lists inside lists") from error
        except ValueError as error:  # Python limits the digits of an integer
            raise HTTPException(400, "expected JSON with shorter numbers") from error


class JsonRoute(APIRoute):
    """A route of `JsonRequest`s that refuses unknown parameters of the query.

    A route that only answers GET and takes no parameters ignores them: a load balancer may add some
    to `/healthz`.
    """

    def get_route_handler(self) -> Callable[[Request], Any]:
        """See `APIRoute`."""
        handle = super().get_route_handler()
        known = sorted(field.alias for field in self.dependant.query_params)
        is_checked = bool(known) or self.methods != {"GET"}

        async def handle_json(request: Request) -> Any:
            if is_checked and request.scope["query_string"]:
                for name in request.query_params:
                    if name not in known:
                        takes = f"takes {', '.join(known)}" if known else "takes none"
                        raise FieldError(name[:64], f"unknown parameter; this route {takes}")
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        HTTPException: A name is there twice.

    >>> _unique([("k", 1), ("user_id", "42")])
    {'k': 1, 'user_id': '42'}
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise HTTPException(
            400, f"expected JSON with each name once; {twice[:64]!r} is there twice"
        )
    return found
