"""Error responses: problem documents (RFC 9457), the same for every service."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What every error answer looks like (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    """One sentence for people."""
    field: str | None = None
    """The field of the request that is wrong, in dots; null where none is."""
    remedy: str | None = None
    """What to do about it; null where we do not know."""


def problem(
    status: int, title: str, detail: str, *, field: str | None = None, remedy: str | None = None
) -> JSONResponse:
    """A problem document as a response. Texts may quote the request, so unpaired surrogates in them are escaped."""
    body = Problem(title=title, status=status, detail=_whole(detail), field=field and _whole(field), remedy=None)
    body.remedy = _whole(remedy) if remedy else None
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body.model_dump(), status, headers, MEDIA_TYPE)


def _whole(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
