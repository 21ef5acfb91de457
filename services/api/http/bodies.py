"""Bounds request bodies before their fields are validated."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from services.contracts.values import check_values


class BoundedRoute(APIRoute):
    """A route that limits its JSON body's number of values and levels, and rejects broken characters; see
    `check_values`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def bounded(request: Request) -> Response:
            try:
                values = await request.json()  # cached on the request, where FastAPI reads it
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError):
                values = None  # FastAPI reports the same error
            check_values(values)
            return await handler(request)

        return bounded
