"""REST: a run's steps, evaluations, checkpoints, weight pushes, samples, and its event stream."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.http.records import answer, answer_one
from services.api.live.board import Board
from services.api.live.broadcaster import Broadcaster
from services.api.live.event_stream import event_stream
from services.api.resources.history.run_evaluations import evaluated_questions
from services.api.resources.history.sample_stream import sample_stream
from services.api.resources.history.schemas import (
    CheckpointItem,
    CheckpointList,
    Difference,
    EvaluationItem,
    EvaluationList,
    SampleList,
    StepList,
    WeightPushItem,
    WeightPushList,
)
from services.api.resources.history.step_stream import step_stream
from services.api.storage import history
from services.api.storage.database import Database
from services.api.storage.event_log import TYPES
from services.api.storage.keyring import Keyring
from services.api.storage.runs import get_run
from services.contracts.evaluations.results import difference
from services.contracts.records import Checkpoint

router = APIRouter(prefix="/v1/runs/{run_id}", tags=["history"])
Data = Annotated[Database, Provided(Database)]
MAX_ID = 2**63 - 1
ERRORS = responses(401, 404, 422, 503)
EVENT_SCHEMA = {
    "type": "object",
    "description": "One server-sent event.",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "description": "Send as Last-Event-ID to continue after this event."},
        "event": {"type": "string", "enum": TYPES},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "The event's fields."},
    },
}


async def existing_run(run_id: str, database: Data) -> str:
    """Id of an existing run. Raises `NotFoundError`."""
    async with database.read() as session:
        await get_run(session, run_id)
    return run_id


RunId = Annotated[str, Depends(existing_run)]


@router.get("/steps", response_model=StepList, responses=ERRORS)
async def list_steps(
    run_id: RunId,
    database: Data,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only steps above this number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=10000)] = 1000,
) -> StreamingResponse:
    """Training steps in order."""
    return StreamingResponse(step_stream(database, run_id, after, limit), media_type="application/json")


@router.get("/evaluations", response_model=EvaluationList, responses=ERRORS)
async def list_evaluations(run_id: RunId, database: Data) -> Response:
    """Evaluations in step order."""
    async with database.read() as session:
        return answer(EvaluationItem, await history.evaluations(session, run_id))


@router.get("/evaluations/difference", response_model=Difference, responses=ERRORS)
async def show_difference(
    run_id: RunId,
    database: Data,
    first: Annotated[int, Query(ge=0, le=2**31 - 1, description="Step of the first evaluation.")],
    second: Annotated[int, Query(ge=0, le=2**31 - 1, description="Step of the second.")],
) -> Response:
    """Which questions the run learned and forgot between its own evaluations after two steps."""
    async with database.read() as session:
        before = await evaluated_questions(session, run_id, first, "first")
        after = await evaluated_questions(session, run_id, second, "second")
    return answer_one(Difference, difference(str(first), str(second), before, after))


@router.get("/checkpoints", response_model=CheckpointList, responses=ERRORS)
async def list_checkpoints(run_id: RunId, database: Data) -> Response:
    """Checkpoints in step order."""
    async with database.read() as session:
        written = await history.checkpoints(session, run_id)

    def on_disk() -> list[Checkpoint]:
        fields = [msgspec.structs.asdict(checkpoint) for checkpoint in written]
        return [Checkpoint(**values, exists=Path(values["path"]).is_dir()) for values in fields]

    return answer(CheckpointItem, await asyncio.to_thread(on_disk))


@router.get("/weight-pushes", response_model=WeightPushList, responses=ERRORS)
async def list_weight_pushes(
    run_id: RunId, database: Data, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Response:
    """Attempts to update rollout servers to new weights, newest first."""
    async with database.read() as session:
        return answer(WeightPushItem, await history.weight_pushes(session, run_id, limit))


@router.get("/samples", response_model=SampleList, responses=ERRORS)
async def list_samples(
    run_id: RunId,
    database: Data,
    step: Annotated[int | None, Query(ge=0, le=2**31 - 1, description="Only groups of this step.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> StreamingResponse:
    """Groups with all their rollouts, newest step first: at most `limit`, and fewer if they exceed 32 MiB."""
    async with database.read() as session:
        keys = await history.sample_keys(session, run_id, step, limit)
    return StreamingResponse(sample_stream(database, run_id, keys), media_type="application/json")


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={
        200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": EVENT_SCHEMA}}},
        **ERRORS,
    },
)
async def stream_events(
    run_id: str,
    request: Request,
    database: Data,
    board: Annotated[Board, Provided(Board)],
    broadcaster: Annotated[Broadcaster, Provided(Broadcaster)],
    keys: Annotated[Keyring, Provided(Keyring)],
    last_event_id: Annotated[str, Header(pattern="^[0-9]{1,18}$", description="Continue after this event.")] = "0",
    after: Annotated[
        int, Query(ge=0, le=MAX_ID, description="Same as Last-Event-ID, for clients that cannot send it.")
    ] = 0,
    follow: Annotated[bool, Query(description="Wait for further events; false ends after the existing ones.")] = True,
) -> StreamingResponse:
    """The run's events as server-sent events: state, step, evaluation, checkpoint, weights, note, samples.

    Each has an id. To continue after the last one seen, send its id as Last-Event-ID, as browsers do.
    """
    if run_id not in board.states:
        async with database.read() as session:
            await get_run(session, run_id)
    caller = getattr(request.state, "caller", None)
    revoked = partial(keys.is_revoked, caller)
    return StreamingResponse(
        event_stream(database, broadcaster, run_id, int(last_event_id) or after, follow, revoked),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
