"""REST: a stored response as other teachers read it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from services.api.http.bodies import BoundedRoute
from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.http.records import answer_one, schema
from services.api.resources.serving.endpoints import while_connected
from services.api.resources.serving.readings import Readings, Told
from services.contracts.model import Section
from services.contracts.records import TeacherReadings

router = APIRouter(prefix="/v1/runs/{run_id}", tags=["serving"], route_class=BoundedRoute)
ReadingsItem = schema("TeacherReadings", TeacherReadings, ())
Text = Annotated[str, Field(max_length=200_000)]
Number = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Teacher(Section):
    """What a teacher reads in addition to the question; nothing by default. Several solutions are numbered."""

    solution: Text | None = None
    """A text of your own, as the first solution."""
    demonstrations: Annotated[list[Number], Field(max_length=64)] = []
    """Indices of responses of the group, as solutions."""
    reference: bool = False
    """The solution in the question's row."""
    feedback: bool = False
    """The feedback on the response that is read."""
    solution_heading: Text | None = None
    """By default the run's `objective.teacher_solution_heading`."""
    feedback_heading: Text | None = None
    """By default the run's `objective.teacher_feedback_heading`."""
    closing: Text | None = None
    """By default the run's `objective.teacher_closing`."""


class Reading(Section):
    """A stored response, and who is to read it."""

    step: Number
    group_id: Annotated[str, Field(max_length=200)]
    index: Number
    """Which response of the group."""
    version: Number | None = None
    """Weight version; by default the newest."""
    teachers: Annotated[list[Teacher], Field(min_length=1, max_length=4)]


@router.post(
    "/samples/readings",
    response_model=ReadingsItem,
    responses=responses(400, 401, 403, 404, 409, 413, 422, 429, 503),
)
async def read_response(
    run_id: str, wanted: Reading, request: Request, readings: Annotated[Readings, Provided(Readings)]
) -> Response:
    """How likely the tokens of a stored response are to the policy, and to teachers that read something in addition to
    the question. The same weights of the run answer for all; waits for an idle rollout server that loads them if none
    has them."""
    teachers = [Told(**teacher.model_dump()) for teacher in wanted.teachers]
    call = readings.read(run_id, wanted.step, wanted.group_id, wanted.index, wanted.version, teachers)
    found = await while_connected(request, call)
    return Response(status_code=499) if found is None else answer_one(ReadingsItem, found)
