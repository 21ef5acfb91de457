"""Renders every error as an RFC 9457 problem document with the field and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from services.api.http.provide import provided
from services.contracts.errors import TurnoutError
from services.contracts.faults import field_of, joined
from services.contracts.run_config import sentence
from services.runtime.http.problem import MEDIA_TYPE, problem
from services.runtime.logs import get_logger
from services.runtime.queue.server_log import queue_server_fault
from services.runtime.settings import Settings

log = get_logger(__name__)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint, for its OpenAPI description."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def install(app: FastAPI, headers: Mapping[str, str]) -> None:
    """Render every error of `app` as a problem. `headers` are added to the response to a fault, which no middleware
    sees."""

    @app.exception_handler(TurnoutError)
    async def named(_: Request, error: TurnoutError) -> JSONResponse:
        return problem(error.status, error.title, error.message, field=error.field, remedy=error.remedy)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        kind = "experiments" if request.url.path.startswith("/v1/experiments") else "configuration"
        return invalid_request(error.errors(), f"docs/{kind}.md lists every field.")

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        title = HTTPStatus(error.status_code).phrase
        remedy = "/docs lists every path and method." if error.status_code in (404, 405) else None
        answer = problem(
            error.status_code, title, f"{request.method} {request.url.path}: {error.detail}.", remedy=remedy
        )
        answer.headers.update(error.headers or {})
        if error.status_code == 405:
            answer.headers["Allow"] = ", ".join(_methods(request))
        return answer

    @app.exception_handler(RedisError)
    async def no_redis(request: Request, error: RedisError) -> JSONResponse:
        log.error("request failed: Redis", error=str(error))
        known = queue_server_fault(provided(request, Settings).home)
        text, remedy = known or "The queue server does not answer.", "Try again; see the API's log."
        return problem(503, "Unavailable", text, remedy=remedy)

    @app.exception_handler(DataError)
    async def unstorable(_: Request, error: DataError) -> JSONResponse:
        text = "The request contains text or a number that the database cannot store."
        return problem(422, "Invalid request", text, remedy="Leave out NUL characters.")

    @app.exception_handler(SQLAlchemyError)
    async def no_database(_: Request, error: SQLAlchemyError) -> JSONResponse:
        log.error("request failed: database", error=str(error), exc_info=error)
        return problem(503, "Unavailable", "The database does not answer.", remedy="Try again; see the API's log.")

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> JSONResponse:
        # The text may contain anything, so it goes only to the log.
        log.error("request failed", error=str(error), exc_info=error)
        answer = problem(500, "Internal error", "The API failed unexpectedly.", remedy="See the API's log for details.")
        answer.headers.update(headers)
        return answer


def _methods(request: Request) -> list[str]:
    """Every method of the path; Starlette's own response names only those of the first route."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.path_regex.match(request.url.path):
            found |= route.methods or set()
    return sorted(found)


def invalid_request(errors: Sequence[Any], remedy: str) -> JSONResponse:
    """Every invalid field of a request in one sentence; `field` names the first."""
    return problem(
        422,
        "Invalid request",
        "The request is not valid: " + joined(errors, _sentence) + ".",
        field=field_of(errors[0]["loc"][1:], errors[0]["msg"]),
        remedy=remedy if errors[0]["loc"][:1] == ("body",) else None,
    )


def _sentence(item: Any) -> str:
    if item["type"] == "json_invalid":
        return "the body is not JSON"
    return sentence(item, skip=1)
