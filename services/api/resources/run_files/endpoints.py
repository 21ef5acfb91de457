"""REST: run files, for starting runs from the page. YAML is parsed here, so that the page needs no parser."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from services.api.http.bodies import BoundedRoute
from services.api.http.problems import responses
from services.api.http.records import answer, listing, schema
from services.contracts.errors import ConfigurationError
from services.contracts.notices import notices
from services.contracts.records import RunFile
from services.contracts.run_file import check, read_run_text
from services.runtime.http.problem import Problem

router = APIRouter(prefix="/v1/run-files", tags=["run files"], route_class=BoundedRoute)
FOLDER = Path("examples/runs")
"""Shipped run files; relative to the services' working folder, as the paths inside them are."""
MAX_CHARACTERS = 100_000


RunFileItem = schema("RunFile", RunFile)
RunFileList = listing("RunFileList", RunFileItem)


class RunFileText(BaseModel):
    """A run file as it was written: YAML, or JSON, which is YAML too."""

    text: Annotated[str, Field(max_length=MAX_CHARACTERS)]


class CheckedRunFile(BaseModel):
    """The result of checking a run file: its configuration, or what is wrong with it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    config: dict[str, Any] | None = None
    """The configuration with every default filled in: the body for `POST /v1/runs`."""
    notices: list[str] = []
    """Settings that are valid but may be unintended; each says what to do."""
    problem: Problem | None = None
    """The problem that `POST /v1/runs` would return, with the line of each fault."""


@router.get("", response_model=RunFileList, responses=responses(401))
async def list_run_files() -> Response:
    """The shipped run files with their text."""
    return answer(RunFileItem, await asyncio.to_thread(_read_folder))


@router.post("/check", responses=responses(400, 401, 413, 422))
async def check_run_file(body: RunFileText) -> CheckedRunFile:
    """Parse a run file and check every field. Nothing is started; an invalid file is a result, not an error."""
    try:
        config = await asyncio.to_thread(lambda: check(read_run_text(body.text)))
    except ConfigurationError as error:
        verdict = Problem(
            title=error.title, status=error.status, detail=error.message, field=error.field, remedy=error.remedy or None
        )
        return CheckedRunFile(problem=verdict)
    values = config.model_dump(mode="json")
    return CheckedRunFile(config=values, notices=notices(values))


def _read_folder() -> list[RunFile]:
    if not FOLDER.is_dir():
        return []
    return [
        RunFile(name=path.name, text=path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.glob("*.yaml"))
        if path.is_file() and path.stat().st_size <= MAX_CHARACTERS
    ]
