"""REST: run files, for starting runs from the page. YAML is parsed here, so that the page needs no parser."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from services.api.http.bodies import BoundedRoute
from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.http.records import answer, answer_one, listing, schema
from services.api.resources.run_files.inputs import find_inputs
from services.api.resources.run_files.questions import QuestionReader
from services.contracts.errors import ConfigurationError
from services.contracts.notices import notices
from services.contracts.records import RunFile, RunInputs
from services.contracts.run_file import check, read_run_text
from services.runtime.first_questions import FirstQuestion
from services.runtime.http.problem import Problem
from services.runtime.settings import Settings

router = APIRouter(prefix="/v1/run-files", tags=["run files"], route_class=BoundedRoute)
FOLDER = Path("examples/runs")
"""Shipped run files; relative to the services' working folder, as the paths inside them are."""
MAX_CHARACTERS = 100_000


RunFileItem = schema("RunFile", RunFile)
RunFileList = listing("RunFileList", RunFileItem)
Inputs = schema("RunInputs", RunInputs)
QuestionItem = schema("FirstQuestion", FirstQuestion)


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


class QuestionsRequest(RunFileText):
    """A run file whose questions are asked for."""

    rows: Annotated[int, Field(ge=1, le=20)] = 2
    """Questions of each source."""


class ReadQuestions(BaseModel):
    """The first questions of a run file's data, or what is wrong with the file or its inputs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    questions: list[QuestionItem] = []  # type: ignore[valid-type]
    note: str = ""
    """Why the texts are not exactly what the model reads; usually empty."""
    problem: Problem | None = None


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
        return CheckedRunFile(problem=_problem(error))
    values = config.model_dump(mode="json")
    return CheckedRunFile(config=values, notices=notices(values))


@router.get("/inputs", response_model=Inputs, responses=responses(401))
async def list_inputs(settings: Annotated[Settings, Provided(Settings)]) -> Response:
    """Models and data files in the folders that runs may read (TURNOUT_ROOTS), as run files name them."""
    models, data, is_whole = await asyncio.to_thread(find_inputs, settings)
    return answer_one(Inputs, RunInputs(models=models, data=data, is_whole=is_whole))


@router.post("/questions", responses=responses(400, 401, 413, 422, 503))
async def read_questions(
    body: QuestionsRequest, reader: Annotated[QuestionReader, Provided(QuestionReader)]
) -> ReadQuestions:
    """The first questions of a run file's data exactly as its model will read them. Downloads nothing."""
    try:
        config = await asyncio.to_thread(lambda: check(read_run_text(body.text)))
        found = await reader.read(config, body.rows)
        if found.fault:
            raise ConfigurationError(found.fault, remedy=found.remedy, field=found.field)
    except ConfigurationError as error:
        return ReadQuestions(problem=_problem(error))
    return ReadQuestions(questions=[msgspec.to_builtins(one) for one in found.questions], note=found.note)


def _problem(error: ConfigurationError) -> Problem:
    return Problem(
        title=error.title,
        status=error.status,
        detail=error.message,
        field=error.field or None,
        remedy=error.remedy or None,
    )


def _read_folder() -> list[RunFile]:
    if not FOLDER.is_dir():
        return []
    return [
        RunFile(name=path.name, text=path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.glob("*.yaml"))
        if path.is_file() and path.stat().st_size <= MAX_CHARACTERS
    ]
