"""Gives endpoints the parts of the API that they need, by type.

async def list_runs(database: Annotated[Database, Provided(Database)]) -> RunPage: ...
"""

from __future__ import annotations

from typing import Any, TypeVar, get_type_hints

from fastapi import Depends, FastAPI, Request

T = TypeVar("T")


def provide(app: FastAPI, parts: object) -> None:
    """Make the fields of `parts`, a dataclass with one field per type, available to the endpoints of `app`."""
    app.state.parts = parts
    app.state.names = {kind: name for name, kind in get_type_hints(type(parts)).items()}


def provided(request: Request, kind: type[T]) -> T:
    """The part of this type. Raises `KeyError` if there is none, which is a programming error."""
    part: T = getattr(request.app.state.parts, request.app.state.names[kind])
    return part


def Provided(kind: type) -> Any:
    """A dependency: the part of this type."""

    # Asynchronous although it awaits nothing: FastAPI would run a plain function in a thread.
    async def look_up(request: Request) -> Any:
        return provided(request, kind)

    return Depends(look_up)
