"""REST: services, queues, health, metrics."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.api.control.pusher import Pusher
from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.http.records import answer
from services.api.live.board import Board
from services.api.live.queues import queue_states
from services.api.live.repeat import LoopStatus
from services.api.metrics.collector import make_registry
from services.api.metrics.federation import Federation
from services.api.resources.fleet.schemas import QueueItem, QueueList, ServiceItem, ServiceList
from services.api.storage.database import Database
from services.api.storage.runs import get_run, unfinished_runs
from services.contracts.records import Service
from services.runtime.presence import list_services
from services.runtime.settings import Settings

router = APIRouter()
QueueServer = Annotated[Redis, Provided(Redis)]
Data = Annotated[Database, Provided(Database)]
BoardOf = Annotated[Board, Provided(Board)]


@router.get("/v1/services", response_model=ServiceList, tags=["services"], responses=responses(401, 503))
async def show_services(redis: QueueServer, pusher: Annotated[Pusher, Provided(Pusher)]) -> Response:
    """Every live instance, what it is doing and what it is waiting for."""
    errors = {name: server.error for name, server in pusher.servers.items() if server.is_out}
    return answer(
        ServiceItem,
        [
            Service(
                **msgspec.structs.asdict(record),
                out_of_rotation=record.instance in errors,
                weight_error=errors.get(record.instance, ""),
            )
            for record in await list_services(redis)
        ],
    )


@router.get("/v1/queues", response_model=QueueList, tags=["services"], responses=responses(401, 404, 422, 503))
async def show_queues(
    redis: QueueServer,
    board: BoardOf,
    database: Data,
    run_id: Annotated[str | None, Query(description="Only queues of this run.")] = None,
) -> Response:
    """Depth and age of the queues of one run, or of every run that has not ended."""
    if run_id is not None and run_id in board.states:  # frequent, so avoid the database
        ids = [run_id]
    else:
        async with database.read() as session:
            runs = await unfinished_runs(session) if run_id is None else [await get_run(session, run_id)]
        ids = [run.id for run in runs]
    return answer(QueueItem, await queue_states(redis, ids))


@router.get("/healthz", tags=["health"])
async def healthz(settings: Annotated[Settings, Provided(Settings)]) -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok", "service": "api", "instance": settings.instance_name("api")}


@router.get("/readyz", tags=["health"], responses={503: {"description": "Not ready; the body says what is missing."}})
async def readyz(
    redis: QueueServer, database: Data, status: Annotated[LoopStatus, Provided(LoopStatus)], response: Response
) -> dict[str, Any]:
    """The database and the queue server answer, and every loop is healthy."""
    faults = dict(status.faults)
    try:
        await redis.ping()
    except (RedisError, OSError) as error:
        faults["redis"] = type(error).__name__
    try:
        async with database.read() as session:
            await session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        faults["database"] = type(error).__name__
    if faults:
        response.status_code = 503
    # Fault texts may contain addresses, which do not belong on an open endpoint; the log has them.
    return {"state": "failing" if faults else "ready", "faults": sorted(faults)}


@router.get(
    "/metrics",
    tags=["health"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **responses(401)},
)
async def metrics(board: BoardOf, database: Data, federation: Annotated[Federation, Provided(Federation)]) -> Response:
    """All metrics, in Prometheus' text format."""
    await board.refresh_runs(database)
    return Response(generate_latest(make_registry(board, federation)), media_type=CONTENT_TYPE_LATEST)
