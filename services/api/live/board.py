"""The newest numbers of every run and service, in memory, for `/metrics`. Rebuilt from the database at start."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import select

from services.api.live.histograms import RunningHistogram, push_histogram
from services.api.live.stalls import Stall, Wait
from services.api.storage import history
from services.api.storage.database import Database
from services.api.storage.runs import Run
from services.contracts.events import EvaluationFinished, Event, Histogram, StepFinished
from services.contracts.heartbeat import ServiceRecord
from services.contracts.records import QueueState, WeightPush
from services.contracts.states import TERMINAL_STATES
from services.contracts.step_metrics import STEP_HISTOGRAMS

MAX_ENDED_RUNS = 20
"""Ended runs that keep their metrics, newest first. This bounds the number of series."""


@dataclass(slots=True)
class RunNumbers:
    """The numbers of one run."""

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the newest step."""
    groups: dict[str, int] = field(default_factory=dict)
    accuracy: dict[tuple[str, int], float] = field(default_factory=dict)
    """avg@k of the newest evaluation, by split and k."""
    histograms: dict[str, RunningHistogram] = field(default_factory=dict)
    """By name in `STEP_HISTOGRAMS`, over all steps."""
    push_seconds: RunningHistogram = field(default_factory=push_histogram)
    num_failed_pushes: int = 0

    def add_histograms(self, step: int, histograms: dict[str, Histogram]) -> None:
        """Count a step's values. A step that is trained again after a resume is not counted twice."""
        if step > self.step:
            for name in STEP_HISTOGRAMS.keys() & histograms.keys():
                self.histograms.setdefault(name, RunningHistogram()).add(histograms[name])
            self.step = step

    def add_push(self, push: WeightPush) -> None:
        if push.error:
            self.num_failed_pushes += 1
        else:
            self.push_seconds.observe(push.seconds)


class Board:
    """All numbers. Listens to the journal; the refresh loop adds what comes from Redis."""

    def __init__(self) -> None:
        self.runs: dict[str, RunNumbers] = {}
        self.states: dict[str, tuple[str, str]] = {}
        """Run id to name and state, of the runs that are shown."""
        self.evaluations: dict[str, int] = {}
        """Number of evaluations by state."""
        self.evaluated_questions = self.evaluated_samples = 0
        """Judged for evaluations since the API started; samples without those that do not count."""
        self.services: list[ServiceRecord] = []
        self.queues: list[QueueState] = []
        self.waits: list[Wait] = []
        self.stalls: list[Stall] = []
        self.out_of_rotation: dict[tuple[str, str], int] = {}
        """(run id, instance) of every assigned rollout server to 1 if it is out of rotation, otherwise 0."""

    def of(self, run_id: str) -> RunNumbers:
        return self.runs.setdefault(run_id, RunNumbers())

    def on_event(self, event: Event) -> None:
        """Update the numbers with a stored event."""
        match event:
            case StepFinished():
                numbers = self.of(event.run_id)
                numbers.add_histograms(event.step, event.histograms)
                numbers.metrics, numbers.groups = event.metrics, event.groups
            case EvaluationFinished():
                self.of(event.run_id).accuracy[event.split, event.num_samples] = event.accuracy

    def on_push(self, push: WeightPush) -> None:
        self.of(push.run_id).add_push(push)

    async def refresh_runs(self, database: Database) -> None:
        """Choose which runs are shown: all that have not ended, and the newest others."""
        async with database.read() as session:
            runs = select(Run.id, Run.name, Run.state)
            going = await session.execute(runs.where(Run.state.not_in(TERMINAL_STATES)))
            newest = await session.execute(runs.order_by(Run.created_at.desc(), Run.id.desc()).limit(MAX_ENDED_RUNS))
            self.states = {run_id: (name, state) for run_id, name, state in (*going, *newest)}
        for run_id in self.runs.keys() - self.states.keys():
            del self.runs[run_id]

    async def rebuild(self, database: Database) -> None:
        """Fill the board from the database at start."""
        await self.refresh_runs(database)
        for run_id in self.states:
            await self._rebuild_run(database, run_id)

    async def _rebuild_run(self, database: Database, run_id: str) -> None:
        numbers = self.of(run_id)
        async with database.read() as session:
            newest = await history.step_numbers(session, run_id)
            if newest is not None:
                numbers.metrics, numbers.groups = newest
            async for step, histograms in history.step_histograms(session, run_id):
                numbers.add_histograms(step, histograms)
            for evaluation in await history.evaluations(session, run_id):
                numbers.accuracy[evaluation.split, evaluation.num_samples] = evaluation.accuracy
            for push in await history.weight_pushes(session, run_id):
                numbers.add_push(push)
