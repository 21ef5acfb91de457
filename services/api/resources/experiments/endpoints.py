"""REST: experiments."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response
from sqlalchemy.ext.asyncio import AsyncSession

from services.api.http.bodies import BoundedRoute
from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.resources.experiments.results import History, Results, summarize
from services.api.resources.experiments.schemas import (
    ExperimentDetail,
    ExperimentList,
    ExperimentSummary,
    detail,
    run_item,
)
from services.api.resources.experiments.service import ExperimentService
from services.api.resources.runs.endpoints import IdempotencyKey
from services.api.storage import experiments as repository
from services.api.storage import history
from services.api.storage.database import Database
from services.api.storage.experiments import ExperimentRow
from services.api.storage.runs import Run
from services.contracts.experiments.experiment import Experiment, run_config
from services.contracts.experiments.plan import cells_of

router = APIRouter(prefix="/v1/experiments", tags=["experiments"], route_class=BoundedRoute)
Experiments = Annotated[ExperimentService, Provided(ExperimentService)]
Data = Annotated[Database, Provided(Database)]
ERRORS = responses(401, 404, 409, 422, 503)


@router.post("", status_code=201, responses=responses(400, 401, 413, 422, 503))
async def create_experiment(
    file: Annotated[dict[str, Any], Body(description="The experiment file (docs/experiments.md).")],
    experiments: Experiments,
    database: Data,
    response: Response,
    idempotency_key: IdempotencyKey,
) -> ExperimentDetail:
    """Store an experiment and start its runs, as many at once as there are learners.

    The file and the digests of its data are stored before the first run starts and do not change afterwards. A repeated
    Idempotency-Key returns the experiment that was made the first time.
    """
    row = await experiments.create(file, idempotency_key)
    response.headers["Location"] = f"/v1/experiments/{row.id}"
    return await _detail(database, row)


@router.get("", responses=responses(401, 422, 503))
async def list_experiments(database: Data, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> ExperimentList:
    """Experiments, newest first."""
    async with database.read() as session:
        rows = await repository.list_experiments(session, limit)
    return ExperimentList(items=[ExperimentSummary.model_validate(row) for row in rows])


@router.get("/{experiment_id}", responses=responses(401, 404, 422, 503))
async def show_experiment(experiment_id: str, database: Data) -> ExperimentDetail:
    """One experiment with its file, what tuning chose, and all its runs."""
    async with database.read() as session:
        row = await repository.get_experiment(session, experiment_id)
    return await _detail(database, row)


@router.get("/{experiment_id}/results", responses=responses(401, 404, 422, 503))
async def show_results(experiment_id: str, database: Data) -> Results:
    """Tables, paired differences and verdicts from the final runs that have succeeded so far."""
    async with database.read() as session:
        row = await repository.get_experiment(session, experiment_id)
        experiment = Experiment.model_validate(row.file)
        runs = await repository.runs_by_cell(session, experiment_id)
        finals = [cell for cell in cells_of(experiment, row.chosen) if cell.phase == "final"]
        histories = {
            (cell.method, cell.seed): await _history(session, run, cell.seed)
            for cell in finals
            if (run := runs.get(cell.key)) is not None and run.state == "succeeded"
        }
    return await asyncio.to_thread(summarize, experiment, histories)


@router.post("/{experiment_id}/stop", responses=ERRORS)
async def stop_experiment(experiment_id: str, experiments: Experiments, database: Data) -> ExperimentDetail:
    """Stop the experiment's runs, each with a checkpoint, and start no more."""
    return await _detail(database, await experiments.stop(experiment_id))


@router.post("/{experiment_id}/resume", responses=ERRORS)
async def resume_experiment(experiment_id: str, experiments: Experiments, database: Data) -> ExperimentDetail:
    """Continue a stopped or failed experiment. Its stopped and failed runs resume from their checkpoints."""
    return await _detail(database, await experiments.resume(experiment_id))


@router.delete("/{experiment_id}", status_code=204, responses=ERRORS)
async def delete_experiment(experiment_id: str, experiments: Experiments) -> None:
    """Delete an experiment that is not running. Its runs stay."""
    await experiments.delete(experiment_id)


async def _history(session: AsyncSession, run: Run, seed: int) -> History:
    return History(
        run_id=run.id,
        seed=seed,
        steps=await history.step_metrics(session, run.id),
        evaluations=await history.evaluations(session, run.id),
        num_ahead=int(run.config["training"]["max_staleness"]) + 1,
    )


async def _detail(database: Database, row: ExperimentRow) -> ExperimentDetail:
    experiment = Experiment.model_validate(row.file)
    async with database.read() as session:
        runs = await repository.runs_by_cell(session, row.id)
        found = await repository.accuracies(session, [run.id for run in runs.values()])
    items = []
    steps: dict[tuple[str, str], int] = {}
    for cell in cells_of(experiment, row.chosen):
        run = runs.get(cell.key)
        kind = (cell.phase, cell.method)
        if kind not in steps:
            steps[kind] = run_config(experiment, cell).training.steps
        newest = found[run.id][-1][1] if run is not None and run.id in found else None
        items.append(run_item(experiment, cell, run, newest, steps[kind]))
    return detail(row, experiment, items)
