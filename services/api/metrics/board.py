"""The newest numbers of every run and service, in memory: what `/metrics` shows. Rebuilt from the database at start."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from sqlalchemy import select

from services.api.database import Database
from services.api.fleet.queues import QueueState
from services.api.history.models import EvaluationRow, StepRow, WeightPushRow
from services.api.metrics.histograms import RunningHistogram, push_histogram
from services.api.runs.repository import newest_runs, unfinished_runs
from services.api.stalls import Stall, Wait
from services.contracts.events import EvaluationFinished, Event, Histogram, StepFinished
from services.contracts.services import ServiceRecord

MAX_ENDED_RUNS = 20
"""Ended runs that keep their metrics, newest first: what bounds the number of series."""


@dataclass(slots=True)
class RunNumbers:
    """What one run shows."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the newest step."""
    groups: dict[str, int] = field(default_factory=dict)
    accuracy: dict[tuple[str, int], float] = field(default_factory=dict)
    """avg@k of the newest evaluation, by split and k."""
    distillation_weight: RunningHistogram = field(default_factory=RunningHistogram)
    staleness_versions: RunningHistogram = field(default_factory=RunningHistogram)
    push_seconds: RunningHistogram = field(default_factory=push_histogram)
    num_failed_pushes: int = 0

    def add_step(self, step: int, metrics: dict[str, float], histograms: dict[str, Histogram]) -> None:
        """Take in a step. One trained again after a resume replaces the gauges but is not counted twice."""
        if step > self.step:
            if "distillation_weight" in histograms:
                self.distillation_weight.add(histograms["distillation_weight"])
            if "staleness_versions" in histograms:
                self.staleness_versions.add(histograms["staleness_versions"])
        self.step, self.metrics = max(step, self.step), metrics

    def add_push(self, row: WeightPushRow) -> None:
        if row.error:
            self.num_failed_pushes += 1
        else:
            self.push_seconds.observe(row.seconds)


class Board:
    """All numbers. Listens to the journal; the refresh loop fills in what comes from Redis."""

    def __init__(self) -> None:
        self.runs: dict[str, RunNumbers] = {}
        self.states: dict[str, tuple[str, str]] = {}
        """Run id to name and state, of the runs that are shown."""
        self.services: list[ServiceRecord] = []
        self.queues: list[QueueState] = []
        self.waits: list[Wait] = []
        self.stalls: list[Stall] = []
        self.out_of_rotation: dict[tuple[str, str], int] = {}
        """(run id, instance) of every assigned rollout server to 1 where it is out of rotation, else 0."""

    def of(self, run_id: str) -> RunNumbers:
        return self.runs.setdefault(run_id, RunNumbers())

    def on_event(self, event: Event) -> None:
        """Take in a new event."""
        match event:
            case StepFinished():
                numbers = self.of(event.run_id)
                numbers.add_step(event.step, event.metrics, event.histograms)
                numbers.groups = event.groups
            case EvaluationFinished():
                self.of(event.run_id).accuracy[event.split, event.num_samples] = event.accuracy

    def on_push(self, row: WeightPushRow) -> None:
        self.of(row.run_id).add_push(row)

    async def refresh_runs(self, database: Database) -> None:
        """Which runs are shown: all that have not ended and the newest others."""
        async with database.read() as session:
            shown = [*await unfinished_runs(session), *await newest_runs(session, MAX_ENDED_RUNS)]
        self.states = {run.id: (run.name, run.state) for run in shown}
        for run_id in self.runs.keys() - self.states.keys():
            del self.runs[run_id]

    async def rebuild(self, database: Database) -> None:
        """Fill the board from the database, after a start."""
        await self.refresh_runs(database)
        for run_id in self.states:
            await self._rebuild_run(database, run_id)

    async def _rebuild_run(self, database: Database, run_id: str) -> None:
        numbers = self.of(run_id)
        async with database.read() as session:
            steps = await session.stream_scalars(select(StepRow).where(StepRow.run_id == run_id).order_by(StepRow.step))
            async for row in steps:
                numbers.add_step(row.step, row.metrics, msgspec.convert(row.histograms, dict[str, Histogram]))
                numbers.groups = row.groups
            query = select(EvaluationRow).where(EvaluationRow.run_id == run_id).order_by(EvaluationRow.step)
            for evaluation in await session.scalars(query):
                numbers.accuracy[evaluation.split, evaluation.num_samples] = evaluation.accuracy
            for push in await session.scalars(select(WeightPushRow).where(WeightPushRow.run_id == run_id)):
                numbers.add_push(push)
