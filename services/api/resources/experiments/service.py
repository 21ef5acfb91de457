"""Operations on experiments (create, stop, resume, delete), and the loop that starts their runs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from redis.asyncio import Redis
from sqlalchemy.exc import IntegrityError

from services.api.resources.runs.service import RunService, new_run_id
from services.api.storage import experiments as repository
from services.api.storage.database import Database
from services.api.storage.experiments import ExperimentRow, ExperimentRun
from services.api.storage.runs import Run
from services.contracts.data import main_split
from services.contracts.errors import ConfigurationError, ConflictError, TurnoutError
from services.contracts.experiments.experiment import (
    Cell,
    ExperimentConfig,
    check_runs,
    phases,
    run_config,
    stored_experiment,
)
from services.contracts.experiments.plan import (
    NothingToChooseError,
    RunFact,
    cells_of,
    choose,
    is_complete,
    next_cells,
    tuning_scores,
)
from services.contracts.records import ExperimentState
from services.contracts.run_config import RunConfig
from services.contracts.states import TERMINAL_STATES
from services.runtime.inputs import check_inputs
from services.runtime.logs import get_logger
from services.runtime.presence import list_services
from services.runtime.settings import Settings

log = get_logger(__name__)


class ExperimentService:
    """Consumes: experiments, their runs' states and evaluations. Produces: runs, choices, ends."""

    def __init__(self, settings: Settings, redis: Redis, database: Database, runs: RunService) -> None:
        self.settings = settings
        self.redis = redis
        self.database = database
        self.runs = runs
        self._changing = asyncio.Lock()
        """Held by the loop while it starts runs, and by a stop or resume: a stopped experiment starts no run."""
        self._digests: dict[str, tuple[tuple[int, int], str]] = {}

    async def create(
        self, experiment: ExperimentConfig, idempotency_key: str | None = None, *, created_by: str = ""
    ) -> ExperimentRow:
        """Store a new experiment, which starts its runs; a repeated key returns the experiment created the first time.
        `created_by`: id of the caller's key.

        Raises:
            ConfigurationError: the file is wrong, an input is missing, or the key was used with another file.
        """
        values = experiment.model_dump(mode="json", exclude_unset=True)
        digest = hashlib.sha256(msgspec.json.encode(values, order="deterministic")).hexdigest()
        earlier = await self._created_before(idempotency_key, digest)
        if earlier is not None:
            return earlier
        await asyncio.to_thread(check_runs, experiment)
        configs = [
            run_config(experiment, Cell.of(phase, method, 0, 0))
            for method in experiment.methods
            for phase in phases(experiment)
        ]
        inputs = await asyncio.to_thread(self._check, configs)
        for config in {config.data.model_dump_json(): config for config in configs}.values():
            await self.runs.rows.check(config)
        row = ExperimentRow(
            id=new_run_id(experiment.name),
            name=experiment.name,
            state="running",
            reason="",
            file=values,
            digest=digest,
            inputs=inputs,
            created_at=time.time(),
            created_by=created_by,
            idempotency_key=idempotency_key,
        )
        try:
            async with self.database.write() as session:
                session.add(row)
        except IntegrityError:
            earlier = await self._created_before(idempotency_key, digest)
            if earlier is None:
                raise
            return earlier
        self.runs.signals.experiments.set()
        return row

    async def _created_before(self, key: str | None, digest: str) -> ExperimentRow | None:
        if key is None:
            return None
        async with self.database.read() as session:
            row = await repository.experiment_of_key(session, key)
        if row is not None and row.digest != digest:
            raise ConfigurationError(
                "This Idempotency-Key was already used for an experiment with a different file.",
                remedy="Use a new key for a new experiment.",
                field="Idempotency-Key",
            )
        return row

    def _check(self, configs: Sequence[RunConfig]) -> dict[str, str]:
        """Check the inputs of one run of each kind, and return the digests of all data files."""
        for config in configs:
            check_inputs(config, self.settings)
        names = {source.path for config in configs for _, source in config.data.files()}
        return {name: self._digest(name) for name in sorted(names)}

    def _digest(self, name: str) -> str:
        """SHA-256 of a data file; read again only if its time or size changed.

        Raises:
            ConfigurationError: it cannot be read.
        """
        known = self._digests.get(name)
        try:
            found = Path(name).stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if known is None or known[0] != stamp:
                with open(name, "rb") as file:
                    known = self._digests[name] = (stamp, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise ConfigurationError(
                f"{name} cannot be read: {error.strerror}.", remedy="Restore the file, then continue the experiment."
            ) from error
        return known[1]

    async def stop(self, experiment_id: str) -> ExperimentRow:
        """Stop the experiment's unfinished runs, each with a checkpoint, and start no more.

        Raises:
            ConflictError: the experiment has ended.
        """
        async with self._changing:
            row, runs = await self._change(experiment_id, "stopped", allowed=("running", "stopped"))
            for run in runs:
                if run.state not in TERMINAL_STATES:
                    await self.runs.stop(run.id)
        return row

    async def resume(self, experiment_id: str) -> ExperimentRow:
        """Continue a stopped or failed experiment; its stopped and failed runs resume from their checkpoints.

        Raises:
            ConflictError: the experiment has succeeded, or some of its runs are still stopping.
        """
        async with self._changing:
            row, runs = await self._change(experiment_id, "running", allowed=("running", "stopped", "failed"))
            for run in runs:
                if run.state in ("stopped", "failed"):
                    await self.runs.resume(run.id)
        self.runs.signals.experiments.set()
        return row

    async def _change(
        self, experiment_id: str, state: ExperimentState, allowed: Sequence[str]
    ) -> tuple[ExperimentRow, list[Run]]:
        async with self.database.write() as session:
            row = await repository.get_experiment(session, experiment_id)
            if row.state not in allowed:
                raise ConflictError(
                    f"The experiment has {row.state}, so it cannot become {state}.",
                    remedy="Start another experiment with the same file.",
                )
            runs = list((await repository.runs_by_cell(session, experiment_id)).values())
            if state == "running" and any(run.state == "stopping" for run in runs):
                raise ConflictError(
                    "Some runs are still stopping.", remedy="Resume the experiment once they have stopped."
                )
            row.state, row.reason, row.finished_at = state, "", None
        return row, runs

    async def delete(self, experiment_id: str) -> None:
        """Delete an experiment that is not running. Its runs stay.

        Raises:
            ConflictError: the experiment is running.
        """
        async with self.database.write() as session:
            row = await repository.get_experiment(session, experiment_id)
            if row.state == "running":
                raise ConflictError("The experiment is running.", remedy="Stop it first.")
            await repository.delete_experiment_rows(session, experiment_id)

    async def step(self) -> None:
        """One round of the loop: advance every running experiment."""
        async with self._changing:
            async with self.database.read() as session:
                rows = await repository.running_experiments(session)
            for row in rows:
                try:
                    await self._advance(row)
                except TurnoutError as error:
                    await self._end(row.id, "failed", str(error))

    async def _advance(self, row: ExperimentRow) -> None:
        experiment = stored_experiment(row.file)
        facts = await self._facts(experiment, row.id)
        chosen = row.chosen
        if chosen is None:
            try:
                chosen = choose(experiment, facts)
            except NothingToChooseError as error:
                await self._end(row.id, "failed", f"Every tuning run of {error} failed; see the reasons of the runs.")
                return
            if chosen is not None:
                scores = None if experiment.tuning is None else tuning_scores(experiment, facts)
                await self._keep_choice(row.id, chosen, scores)
        cells = cells_of(experiment, chosen)
        for cell in next_cells(cells, facts, await self._room()):
            await self._start(row, run_config(experiment, cell), cell)
        if chosen is not None and is_complete(cells, facts):
            failed = sum(fact.state == "failed" for fact in facts.values())
            await self._end(row.id, "succeeded", f"{failed} of {len(cells)} runs failed." if failed else "")

    async def _room(self) -> int:
        """Runs that may be unfinished at once: one per learner, and one more in the queue."""
        services = await list_services(self.redis)
        return 1 + max(1, sum(record.leads_runs and record.state != "failed" for record in services))

    async def _facts(self, experiment: ExperimentConfig, experiment_id: str) -> dict[str, RunFact]:
        async with self.database.read() as session:
            runs = await repository.runs_by_cell(session, experiment_id)
            ended = {run.id: main_split(run.config) for run in runs.values() if run.state == "succeeded"}
            found = await repository.accuracies(session, ended)
        last = experiment.last_evaluations
        scores = {
            run_id: fmean(trained[-last:])
            for run_id, items in found.items()
            if (trained := [accuracy for step, accuracy in items if step > 0])
        }
        return {cell: RunFact(run.state, scores.get(run.id)) for cell, run in runs.items()}

    async def _start(self, row: ExperimentRow, config: RunConfig, cell: Cell) -> None:
        """Queue the run of a cell. A restart between the two writes finds the run by its idempotency key."""
        for name, digest in row.inputs.items():
            if await asyncio.to_thread(self._digest, name) != digest:
                raise ConfigurationError(
                    f"{name} has changed since the experiment was created.",
                    remedy="Restore the file and resume the experiment, or start a new one.",
                )
        run = await self.runs.create(config, f"experiment:{row.id}:{cell.key}", created_by=row.created_by)
        async with self.database.write() as session:
            await session.merge(ExperimentRun(experiment_id=row.id, cell=cell.key, run_id=run.id))
        log.info("experiment run queued", experiment=row.id, cell=cell.key, run_id=run.id)

    async def _keep_choice(self, experiment_id: str, chosen: dict[str, int], scores: dict[str, Any] | None) -> None:
        async with self.database.write() as session:
            row = await repository.get_experiment(session, experiment_id)
            row.chosen, row.scores = chosen, scores

    async def _end(self, experiment_id: str, state: ExperimentState, reason: str) -> None:
        async with self.database.write() as session:
            row = await repository.get_experiment(session, experiment_id)
            if row.state == "running":
                row.state, row.reason, row.finished_at = state, reason, time.time()
        log.info("experiment ended", experiment=experiment_id, state=state, reason=reason)
