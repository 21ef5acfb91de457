"""REST: experiments."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response
from sqlalchemy.ext.asyncio import AsyncSession

from services.api.http.bodies import BoundedRoute
from services.api.http.problems import responses
from services.api.http.provide import Provided
from services.api.http.records import answer, answer_one
from services.api.resources.experiments.pace import seconds_left
from services.api.resources.experiments.results import History, summarize
from services.api.resources.experiments.schemas import Detail, ExperimentList, Results, Summary
from services.api.resources.experiments.service import ExperimentService
from services.api.resources.runs.endpoints import CallerId, IdempotencyKey
from services.api.storage import experiments as repository
from services.api.storage import history
from services.api.storage.database import Database
from services.api.storage.experiments import ExperimentRow
from services.api.storage.runs import Run
from services.contracts.data import main_split
from services.contracts.errors import ConfigurationError
from services.contracts.experiments.experiment import (
    Cell,
    ExperimentConfig,
    Phase,
    num_runs,
    run_config,
    stored_experiment,
)
from services.contracts.experiments.plan import cells_of
from services.contracts.records import Experiment, ExperimentRun, ExperimentSummary

router = APIRouter(prefix="/v1/experiments", tags=["experiments"], route_class=BoundedRoute)
Experiments = Annotated[ExperimentService, Provided(ExperimentService)]
Data = Annotated[Database, Provided(Database)]
ERRORS = responses(401, 404, 409, 422, 503)


@router.post("", status_code=201, response_model=Detail, responses=responses(400, 401, 413, 422, 503))
async def create_experiment(
    file: ExperimentConfig,
    experiments: Experiments,
    database: Data,
    idempotency_key: IdempotencyKey,
    created_by: CallerId,
) -> Response:
    """Store an experiment and start its runs, one per learner at a time. The body is the experiment file.

    The file and the digests of its data are stored before the first run starts and do not change afterwards. A repeated
    Idempotency-Key returns the experiment created the first time.
    """
    row = await experiments.create(file, idempotency_key, created_by=created_by)
    return answer_one(Detail, await _detail(database, row), created_at=f"/v1/experiments/{row.id}")


@router.get("", response_model=ExperimentList, responses=responses(401, 422, 503))
async def list_experiments(
    database: Data,
    cursor: Annotated[str | None, Query(max_length=1000, description="next_cursor of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Experiments, newest first."""
    async with database.read() as session:
        rows, next_cursor = await repository.list_experiments(session, cursor=cursor, limit=limit)
    return answer(Summary, [_summary(row) for row in rows], next_cursor=next_cursor)


@router.get("/{experiment_id}", response_model=Detail, responses=responses(401, 404, 422, 503))
async def show_experiment(experiment_id: str, database: Data) -> Response:
    """One experiment with its file, what tuning chose, and all its runs."""
    async with database.read() as session:
        row = await repository.get_experiment(session, experiment_id)
    return answer_one(Detail, await _detail(database, row))


@router.get("/{experiment_id}/results", response_model=Results, responses=responses(401, 404, 422, 503))
async def show_results(experiment_id: str, database: Data) -> Response:
    """Tables, paired differences and verdicts from the final runs that have succeeded so far."""
    async with database.read() as session:
        row = await repository.get_experiment(session, experiment_id)
        experiment = stored_experiment(row.file)
        runs = await repository.runs_by_cell(session, experiment_id)
        finals = [cell for cell in cells_of(experiment, row.chosen) if cell.phase == "final"]
        histories = {
            (cell.method, cell.seed): await _history(session, run, cell.seed)
            for cell in finals
            if (run := runs.get(cell.key)) is not None and run.state == "succeeded"
        }
    return answer_one(Results, await asyncio.to_thread(summarize, experiment, histories))


@router.post("/{experiment_id}/stop", response_model=Detail, responses=ERRORS)
async def stop_experiment(experiment_id: str, experiments: Experiments, database: Data) -> Response:
    """Stop the experiment's runs, each with a checkpoint, and start no more."""
    return answer_one(Detail, await _detail(database, await experiments.stop(experiment_id)))


@router.post("/{experiment_id}/resume", response_model=Detail, responses=ERRORS)
async def resume_experiment(experiment_id: str, experiments: Experiments, database: Data) -> Response:
    """Continue a stopped or failed experiment. Its stopped and failed runs resume from their checkpoints."""
    return answer_one(Detail, await _detail(database, await experiments.resume(experiment_id)))


@router.delete("/{experiment_id}", status_code=204, responses=ERRORS)
async def delete_experiment(experiment_id: str, experiments: Experiments) -> None:
    """Delete an experiment that is not running. Its runs stay."""
    await experiments.delete(experiment_id)


async def _history(session: AsyncSession, run: Run, seed: int) -> History:
    split = main_split(run.config)
    return History(
        run_id=run.id,
        seed=seed,
        steps=await history.step_metrics(session, run.id),
        evaluations=[item for item in await history.evaluations(session, run.id) if item.split == split],
        num_ahead=int(run.config["training"]["max_staleness"]) + 1,
    )


async def _detail(database: Database, row: ExperimentRow) -> Experiment:
    experiment = stored_experiment(row.file)
    async with database.read() as session:
        runs = await repository.runs_by_cell(session, row.id)
        evaluated = await repository.accuracies(session, {run.id: main_split(run.config) for run in runs.values()})
    cells = cells_of(experiment, row.chosen)
    kinds = {(cell.phase, cell.method): cell for cell in cells}
    num_steps = {kind: _num_steps(experiment, cell) for kind, cell in kinds.items()}
    items = [_run_item(experiment, cell, runs.get(cell.key), num_steps, evaluated) for cell in cells]
    chosen = None
    if row.chosen is not None:
        chosen = {method: experiment.points(method)[point] for method, point in row.chosen.items()}
    return Experiment(
        **msgspec.structs.asdict(_summary(row)),
        file=row.file,
        inputs=row.inputs,
        chosen=chosen,
        scores=row.scores,
        num_runs=num_runs(experiment),
        seconds_left=seconds_left(items, num_runs(experiment), runs.values()) if row.state == "running" else None,
        runs=items,
    )


def _summary(row: ExperimentRow) -> ExperimentSummary:
    return ExperimentSummary(**{name: getattr(row, name) for name in ExperimentSummary.__struct_fields__})


def _num_steps(experiment: ExperimentConfig, cell: Cell) -> int:
    """Steps that a cell's run would have; 0 if an earlier version accepted the cell and this one does not."""
    try:
        return run_config(experiment, cell).training.steps
    except ConfigurationError:
        return 0


def _run_item(
    experiment: ExperimentConfig,
    cell: Cell,
    run: Run | None,
    num_steps: Mapping[tuple[Phase, str], int],
    evaluated: dict[str, list[tuple[int, float]]],
) -> ExperimentRun:
    found = evaluated.get(run.id) if run is not None else None
    return ExperimentRun(
        cell=cell.key,
        phase=cell.phase,
        method=cell.method,
        values=experiment.points(cell.method)[cell.point],
        seed=cell.seed,
        run_id=run.id if run else None,
        state=run.state if run else None,
        step=run.step if run else 0,
        num_steps=int(run.config["training"]["steps"]) if run else num_steps[cell.phase, cell.method],
        accuracy=found[-1][1] if found else None,
    )
