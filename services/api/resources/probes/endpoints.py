"""REST: probes, which measure a task before a run trains on it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response

from services.api.http.bodies import BoundedRoute
from services.api.http.problems import responses
from services.api.http.records import answer_one, schema
from services.api.resources.runs.endpoints import CallerId, Data, IdempotencyKey, Runs, run_answer
from services.api.resources.runs.schemas import RunDetail
from services.api.storage import event_log, history
from services.api.storage.runs import get_run
from services.contracts.errors import ConflictError, NotFoundError
from services.contracts.events import ProbeFinished
from services.contracts.probe import probe_config, report
from services.contracts.records import Probe
from services.contracts.run_config import RunConfig, read_run_config

router = APIRouter(prefix="/v1/probes", tags=["probes"], route_class=BoundedRoute)
ProbeReport = schema("Probe", Probe, ())


@router.post("", status_code=201, response_model=RunDetail, responses=responses(400, 401, 413, 422, 503))
async def create_probe(
    config: RunConfig,
    runs: Runs,
    database: Data,
    idempotency_key: IdempotencyKey,
    created_by: CallerId,
    num_questions: Annotated[int, Query(ge=1, le=10_000, description="Training questions to sample.")] = 32,
    steps: Annotated[int, Query(ge=1, le=100, description="Training steps to time.")] = 3,
) -> Response:
    """Queue a probe of a run configuration: a short run that measures the task and trains a few steps to time them."""
    run = await runs.create(probe_config(config, num_questions, steps), idempotency_key, created_by=created_by)
    return await run_answer(database, run, is_new=True)


@router.get("/{run_id}", response_model=ProbeReport, responses=responses(401, 404, 409, 422, 503))
async def show_probe(run_id: str, database: Data) -> Response:
    """What a probe found, with advice in words. `run_id` is the id of the run that `POST /v1/probes` made."""
    async with database.read() as session:
        run = await get_run(session, run_id)
        if not run.config.get("probe"):
            raise NotFoundError(f"Run {run_id} is not a probe.", remedy="POST /v1/probes makes one.", field="run_id")
        data = await event_log.newest(session, run_id, "probe")
        steps = await history.step_metrics(session, run_id)
    if data is None:
        raise ConflictError(
            f"The probe has not sampled its questions yet; its run is {run.state}.",
            remedy="Ask again later, or read why in the run's notes if it has ended.",
        )
    found = msgspec.convert({"run_id": run_id, **data}, ProbeFinished)
    return answer_one(ProbeReport, report(read_run_config(msgspec.json.encode(run.config)), found, steps))
