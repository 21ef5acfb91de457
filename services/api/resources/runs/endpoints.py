"""REST: runs."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import Field
from sqlalchemy import not_
from sqlalchemy.ext.asyncio import AsyncSession

from services.api.control.scheduler import Scheduler
from services.api.http.bodies import BoundedRoute
from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.http.records import answer, answer_one
from services.api.live.board import Board
from services.api.live.broadcaster import Broadcaster
from services.api.resources.runs.schemas import ForkRequest, Priority, RunChanges, RunDetail, RunPage, RunSummary, shown
from services.api.resources.runs.service import RunService
from services.api.storage import history
from services.api.storage import runs as repository
from services.api.storage.database import Database
from services.api.storage.keyring import Caller
from services.api.storage.run_search import has_value, values_of
from services.contracts.data import main_split
from services.contracts.notices import notices
from services.contracts.records import QueuePlace, Run
from services.contracts.run_config import RunConfig
from services.contracts.states import RunState

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=BoundedRoute)
Runs = Annotated[RunService, Provided(RunService)]
Data = Annotated[Database, Provided(Database)]
Queue = Annotated[Scheduler, Provided(Scheduler)]


def own_idempotency_key(
    request: Request, idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None
) -> str | None:
    """The request's idempotency key, distinct from the same key of another caller."""
    caller: Caller | None = getattr(request.state, "caller", None)
    if idempotency_key is None or caller is None:
        return idempotency_key
    return "sha256:" + hashlib.sha256(f"{caller.id}\0{idempotency_key}".encode()).hexdigest()


def caller_id(request: Request) -> str:
    """Id of the request's key; empty if the API requires none."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return caller.id if caller is not None else ""


IdempotencyKey = Annotated[str | None, Depends(own_idempotency_key)]
CallerId = Annotated[str, Depends(caller_id)]


@router.post("", status_code=201, response_model=RunDetail, responses=responses(400, 401, 413, 422, 503))
async def create_run(
    config: RunConfig,
    runs: Runs,
    database: Data,
    idempotency_key: IdempotencyKey,
    created_by: CallerId,
    priority: Annotated[Priority, Query(description="Of queued runs, the highest priority starts first.")] = 0,
) -> Response:
    """Queue a run. The body is the run configuration; a repeated Idempotency-Key returns the run created the first
    time."""
    run = await runs.create(config, idempotency_key, priority=priority, created_by=created_by)
    return await run_answer(database, run, is_new=True)


@router.get("", response_model=RunPage, responses=responses(401, 422, 503))
async def list_runs(
    database: Data,
    scheduler: Queue,
    state: Annotated[list[RunState] | None, Query()] = None,
    name: Annotated[str | None, Query(max_length=100, description="Text that the name contains.")] = None,
    config: Annotated[
        list[Annotated[str, Field(max_length=500)]] | None,
        Query(max_length=10, description="FIELD=VALUE that the configuration has: optimizer.learning_rate=1e-6."),
    ] = None,
    tag: Annotated[
        list[Annotated[str, Field(max_length=40)]] | None, Query(max_length=10, description="A tag that it has.")
    ] = None,
    without_tag: Annotated[
        list[Annotated[str, Field(max_length=40)]] | None, Query(max_length=10, description="A tag that it lacks.")
    ] = None,
    field: Annotated[
        list[Annotated[str, Field(max_length=200)]] | None,
        Query(max_length=30, description="Field of the configuration to return in `fields`: optimizer.learning_rate."),
    ] = None,
    metric: Annotated[
        list[Annotated[str, Field(max_length=200)]] | None,
        Query(max_length=30, description="Metric to return in `metrics`; by default all of the newest step."),
    ] = None,
    sort: repository.Sort = "-created_at",
    cursor: Annotated[str | None, Query(max_length=1000, description="next_cursor of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Runs, newest first unless `sort` says otherwise."""
    async with database.read() as session:
        conditions = [has_value(setting, session.get_bind().dialect.name) for setting in config or ()]
        conditions += [repository.has_tag(one) for one in tag or ()]
        conditions += [not_(repository.has_tag(one)) for one in without_tag or ()]
        found, next_cursor = await repository.page_of_runs(
            session, state=state or [], name=name, sort=sort, cursor=cursor, limit=limit, conditions=conditions
        )
    return answer(
        RunSummary,
        [
            shown(
                run,
                metrics=metrics if metric is None else {name: metrics[name] for name in metric if name in metrics},
                fields=values_of(run.config, field or ()),
                queue=scheduler.place(run),
            )
            for run, metrics in found
        ],
        next_cursor=next_cursor,
    )


@router.get("/{run_id}", response_model=RunDetail, responses=responses(401, 404, 422, 503))
async def show_run(run_id: str, database: Data, scheduler: Queue) -> Response:
    """One run with its configuration and newest numbers."""
    async with database.read() as session:
        row = await repository.get_run(session, run_id)
        run = await _described(session, row, scheduler.place(row))
    return answer_one(RunDetail, run)


@router.patch("/{run_id}", response_model=RunDetail, responses=responses(400, 401, 404, 413, 422, 503))
async def change_run(run_id: str, changes: RunChanges, runs: Runs, database: Data, scheduler: Queue) -> Response:
    """Change a run's name, priority, tags or note, in any state."""
    row = await runs.change(run_id, changes)
    return await run_answer(database, row, queue=scheduler.place(row))


@router.post(
    "/{run_id}/fork",
    status_code=201,
    response_model=RunDetail,
    responses=responses(400, 401, 404, 409, 413, 422, 503),
)
async def fork_run(
    run_id: str,
    request: ForkRequest,
    runs: Runs,
    database: Data,
    idempotency_key: IdempotencyKey,
    created_by: CallerId,
) -> Response:
    """Queue a new run that continues from a checkpoint of this one, with changed settings.

    Weights, optimizer state, self-teacher, step number and position in the data continue from the checkpoint. The new
    run has its own copy of it, so this run may continue or be deleted.
    """
    run = await runs.fork(run_id, request, idempotency_key, created_by=created_by)
    return await run_answer(database, run, is_new=True)


@router.post("/{run_id}/stop", response_model=RunDetail, responses=responses(401, 404, 409, 422, 503))
async def stop_run(
    run_id: str,
    runs: Runs,
    database: Data,
    now: Annotated[bool, Query(description="End immediately, without a checkpoint.")] = False,
) -> Response:
    """End a run gracefully, with a checkpoint, unless `now` is set."""
    return await run_answer(database, await runs.stop(run_id, now=now))


@router.post("/{run_id}/pause", response_model=RunDetail, responses=responses(401, 404, 409, 422, 503))
async def pause_run(run_id: str, runs: Runs, database: Data) -> Response:
    """Pause after the current step. The run keeps its services."""
    return await run_answer(database, await runs.pause(run_id))


@router.post("/{run_id}/resume", response_model=RunDetail, responses=responses(401, 404, 409, 422, 503))
async def resume_run(run_id: str, runs: Runs, database: Data) -> Response:
    """Resume a paused run, or queue a stopped or failed one again to continue from its newest checkpoint."""
    return await run_answer(database, await runs.resume(run_id))


@router.delete("/{run_id}", status_code=204, responses=responses(401, 404, 409, 422, 503))
async def delete_run(
    run_id: str,
    runs: Runs,
    board: Annotated[Board, Provided(Board)],
    broadcaster: Annotated[Broadcaster, Provided(Broadcaster)],
) -> None:
    """Delete a run that has ended, with its files, queues and history; its event streams end."""
    await runs.delete(run_id)
    board.states.pop(run_id, None)
    broadcaster.end(run_id)


async def run_answer(
    database: Database, row: repository.Run, *, is_new: bool = False, queue: QueuePlace | None = None
) -> Response:
    """The JSON of one run with its newest numbers."""
    async with database.read() as session:
        run = await _described(session, row, queue)
    return answer_one(RunDetail, run, created_at=f"/v1/runs/{run.id}" if is_new else None)


async def _described(session: AsyncSession, run: repository.Run, queue: QueuePlace | None) -> Run:
    newest = await history.step_numbers(session, run.id, run.step)
    first, last = await history.first_and_last_accuracy(session, run.id, main_split(run.config))
    return shown(
        run,
        queue=queue,
        notices=notices(run.config),
        metrics=newest.metrics if newest else {},
        groups=newest.groups if newest else {},
        accuracy_first=first,
        accuracy_last=last,
    )
