"""REST: services, queues, health, metrics."""

from __future__ import annotations

from typing import Annotated, Any

import prometheus_client
from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.api.container import Parts, PartsOf
from services.api.http.problems import responses
from services.api.live.queues import queue_states
from services.api.metrics.collector import BoardCollector
from services.api.resources.fleet.schemas import QueueList, ServiceItem, ServiceList
from services.api.storage.repositories.runs import get_run, unfinished_runs
from services.runtime.presence import list_services

router = APIRouter()


@router.get("/v1/services", tags=["services"], responses=responses(401, 503))
async def show_services(parts: PartsOf) -> ServiceList:
    """Every instance that is alive, what it does and what it waits for."""
    items = []
    for record in await list_services(parts.redis):
        server = parts.pusher.servers.get(record.instance)
        out = server is not None and server.is_out
        item = ServiceItem.model_validate(record)
        if server is not None and out:
            item = item.model_copy(update={"out_of_rotation": True, "weight_error": server.error})
        items.append(item)
    return ServiceList(items=items)


@router.get("/v1/queues", tags=["services"], responses=responses(401, 404, 422, 503))
async def show_queues(
    parts: PartsOf, run_id: Annotated[str | None, Query(description="Only this run's.")] = None
) -> QueueList:
    """Depth and age of the queues of one run, or of every run that has not ended."""
    if run_id is not None and run_id in parts.board.states:  # asked for often, and the database is what would cost
        ids = [run_id]
    else:
        async with parts.database.read() as session:
            runs = await unfinished_runs(session) if run_id is None else [await get_run(session, run_id)]
        ids = [run.id for run in runs]
    return QueueList(items=await queue_states(parts.redis, ids))


@router.get("/healthz", tags=["health"])
async def healthz(parts: PartsOf) -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "service": "api", "instance": parts.settings.instance_name("api")}


@router.get("/readyz", tags=["health"], responses={503: {"description": "Not ready; the body says what is missing."}})
async def readyz(parts: PartsOf, response: Response) -> dict[str, Any]:
    """The database and the queue server answer, and every loop works."""
    faults = dict(parts.status.faults)
    try:
        await parts.redis.ping()
    except (RedisError, OSError) as error:
        faults["redis"] = type(error).__name__
    try:
        async with parts.database.read() as session:
            await session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        faults["database"] = type(error).__name__
    if faults:
        response.status_code = 503
    # The texts of faults may name addresses; who may call /v1 finds them in the log.
    return {"state": "failing" if faults else "ready", "faults": sorted(faults)}


@router.get(
    "/metrics",
    tags=["health"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **responses(401)},
)
async def metrics(parts: PartsOf) -> Response:
    """Everything for Prometheus."""
    await parts.board.refresh_runs(parts.database)
    return Response(generate_latest(make_registry(parts)), media_type=CONTENT_TYPE_LATEST)


def make_registry(parts: Parts) -> CollectorRegistry:
    """The API's collectors: the board, the verifiers' numbers, this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BoardCollector(parts.board))
    registry.register(parts.federation)
    prometheus_client.ProcessCollector(registry=registry)
    return registry
