"""Bodies of requests: bounded before the fields are looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from services.contracts.values import check_values


class BoundedRoute(APIRoute):
    """A route whose JSON body has at most so many values and levels, and only whole characters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def bounded(request: Request) -> Response:
            try:
                values = await request.json()  # kept by the request: FastAPI reads it from there
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError):
                values = None  # FastAPI finds the same, and says so
            check_values(values)
            return await handler(request)

        return bounded
