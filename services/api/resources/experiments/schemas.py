"""Experiments as the API describes them. Times are Unix seconds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from services.api.storage.experiments import ExperimentRow, ExperimentState
from services.api.storage.runs import Run
from services.contracts.experiments.experiment import Cell, Experiment


class ExperimentSummary(BaseModel):
    """An experiment without its file and runs."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)

    id: str
    name: str
    state: ExperimentState
    reason: str
    """Why the experiment is in its state; empty if that needs no explanation."""
    digest: str
    """SHA-256 of the file in canonical JSON."""
    created_at: float
    finished_at: float | None


class ExperimentRunItem(BaseModel):
    """One run of an experiment."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    cell: str
    phase: str
    """tuning or final."""
    method: str
    values: dict[str, Any]
    """The grid's values, by field."""
    seed: int
    run_id: str | None
    state: str | None
    """The run's state; null: not started yet."""
    step: int
    num_steps: int
    accuracy: float | None
    """Newest evaluation."""


class ExperimentDetail(ExperimentSummary):
    """An experiment with its file, choices and runs."""

    file: dict[str, Any]
    """As it was sent, before the first run."""
    inputs: dict[str, str]
    """SHA-256 of each data file, by path."""
    chosen: dict[str, dict[str, Any]] | None
    """The grid's values that tuning chose, by method; null until all tuning runs have ended."""
    scores: dict[str, list[list[float]]] | None
    """Tuning scores by method, grid point and seed."""
    runs: list[ExperimentRunItem]


class ExperimentList(BaseModel):
    items: list[ExperimentSummary]


def run_item(
    experiment: Experiment, cell: Cell, run: Run | None, accuracy: float | None, num_steps: int
) -> ExperimentRunItem:
    """One cell with its run, if it has one."""
    return ExperimentRunItem(
        cell=cell.key,
        phase=cell.phase,
        method=cell.method,
        values=experiment.points(cell.method)[cell.point],
        seed=cell.seed,
        run_id=run.id if run else None,
        state=run.state if run else None,
        step=run.step if run else 0,
        num_steps=num_steps,
        accuracy=accuracy,
    )


def detail(row: ExperimentRow, experiment: Experiment, runs: list[ExperimentRunItem]) -> ExperimentDetail:
    """The whole experiment."""
    chosen = None
    if row.chosen is not None:
        chosen = {method: experiment.points(method)[point] for method, point in row.chosen.items()}
    return ExperimentDetail(
        **ExperimentSummary.model_validate(row).model_dump(),
        file=row.file,
        inputs=row.inputs,
        chosen=chosen,
        scores=row.scores,
        runs=runs,
    )
