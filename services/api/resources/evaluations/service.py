"""Operations on evaluations: create, cancel, delete. The scheduler gives them a server, the examiner does the rest."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from pathlib import PurePath

import msgspec
from redis.asyncio import Redis
from sqlalchemy.exc import IntegrityError

from services.api.live.signals import Signals
from services.api.resources.evaluations.schemas import EvaluationChanges
from services.api.resources.runs.fork import unsettle
from services.api.resources.runs.service import RunService
from services.api.resources.runs.weights import Pinned, choose, pin
from services.api.storage import evaluations as repository
from services.api.storage.database import Database
from services.api.storage.evaluations import EvaluationRow
from services.api.storage.runs import Run
from services.contracts import streams
from services.contracts.errors import ConfigurationError, ConflictError
from services.contracts.evaluations.ids import new_id
from services.contracts.evaluations.request import EvaluationRequest, services_config
from services.contracts.run_config import RunConfig
from services.runtime.logs import get_logger
from services.runtime.settings import Settings

log = get_logger(__name__)


class EvaluationService:
    """Changes evaluations at a user's request."""

    def __init__(
        self, settings: Settings, redis: Redis, database: Database, signals: Signals, runs: RunService
    ) -> None:
        self.settings = settings
        self.redis = redis
        self.database = database
        self.signals = signals
        self.runs = runs

    async def create(
        self, request: EvaluationRequest, idempotency_key: str | None = None, *, priority: int = 0
    ) -> EvaluationRow:
        """Queue a new evaluation; a repeated key returns the one created the first time.

        Raises:
            ConfigurationError: an input is missing, rows cannot be used, the run has no such weights, or the key was
                used with another request.
            ConflictError: the run has no weights yet.
        """
        values = request.model_dump(mode="json", exclude_unset=True)
        digest = hashlib.sha256(msgspec.json.encode(values, order="deterministic")).hexdigest()
        if (earlier := await self._created_before(idempotency_key, digest)) is not None:
            return earlier
        run = await self._run(request)
        evaluation_id = new_id()
        folder = self.settings.run_folder(evaluation_id)
        try:
            step, pinned = await self._pin(request, run, evaluation_id)
            config = services_config(request, run.config if run else None, pinned.model)
            await self.check_inputs(config)
            row = _row(evaluation_id, request, run, step, config, pinned)
            row.request, row.request_digest, row.idempotency_key = values, digest, idempotency_key
            row.priority = priority
            return await self._add(row)
        finally:
            if run is not None:
                await self.runs.settle_folder(folder)

    async def _run(self, request: EvaluationRequest) -> Run | None:
        if request.run is None:
            return None
        async with self.database.read() as session:
            run = await session.get(Run, request.run)
        if run is None:
            raise ConfigurationError(
                f"run is {request.run}, but there is no such run.", remedy="GET /v1/runs lists the runs.", field="run"
            )
        return run

    async def _pin(self, request: EvaluationRequest, run: Run | None, evaluation_id: str) -> tuple[int | None, Pinned]:
        """The step of the run, and the evaluation's own copy of its weights."""
        if run is None:
            return None, Pinned(None, None)
        is_fork = run.forked_from_run is not None
        weights = await asyncio.to_thread(choose, self.settings, run.id, request.step, is_fork=is_fork)
        await asyncio.to_thread(unsettle, self.settings.run_folder(evaluation_id))
        return weights.step, await asyncio.to_thread(pin, self.settings, evaluation_id, weights)

    async def check_inputs(self, config: RunConfig) -> None:
        """Check the model, and the files of the validation sets with their rows. A run's teacher may be gone."""
        data = config.data.model_copy(update={"train": ()})
        objective = config.objective.model_copy(update={"teacher_path": None})
        await self.runs.check_inputs(config.model_copy(update={"data": data, "objective": objective}))

    async def _add(self, row: EvaluationRow) -> EvaluationRow:
        try:
            async with self.database.write() as session:
                session.add(row)
        except IntegrityError:
            earlier = await self._created_before(row.idempotency_key, row.request_digest)
            if earlier is None:
                raise
            return earlier
        self.signals.schedule.set()
        return row

    async def _created_before(self, key: str | None, digest: str) -> EvaluationRow | None:
        if key is None:
            return None
        async with self.database.read() as session:
            row = await repository.evaluation_of_key(session, key)
        if row is not None and row.request_digest != digest:
            raise ConfigurationError(
                "This Idempotency-Key was already used for a different evaluation.",
                remedy="Use a new key for a new evaluation.",
                field="Idempotency-Key",
            )
        return row

    async def change(self, evaluation_id: str, changes: EvaluationChanges) -> EvaluationRow:
        """Change what a user may change at any time. Raises `NotFoundError`."""
        async with self.database.write() as session:
            row = await repository.get_evaluation(session, evaluation_id)
            for name, value in changes.model_dump(exclude_none=True).items():
                setattr(row, name, value)
        self.signals.schedule.set()
        return row

    async def cancel(self, evaluation_id: str) -> EvaluationRow:
        """End an evaluation. What it has found so far stays.

        Raises:
            ConflictError: it has ended already, other than by being cancelled.
        """
        async with self.database.write() as session:
            row = await repository.get_evaluation(session, evaluation_id)
            if row.state not in (*repository.UNENDED, "cancelled"):
                raise ConflictError(
                    f"The evaluation has {row.state}; it cannot be cancelled.",
                    remedy="Delete it to remove its results.",
                )
            was_queued = row.state == "queued"
            if row.state != "cancelled":
                row.state, row.reason, row.finished_at = "cancelled", "cancelled by request", time.time()
                row.rollout_servers = []
        self.signals.schedule.set()
        if was_queued:  # otherwise the scheduler deletes its queues once its services have left
            await self.redis.delete(*streams.run_keys(evaluation_id))
        await self.discard_files(evaluation_id)
        return row

    async def delete(self, evaluation_id: str) -> None:
        """Delete an evaluation that has ended, with its results.

        Raises:
            ConflictError: it has not ended.
        """
        async with self.database.write() as session:
            row = await repository.get_evaluation(session, evaluation_id)
            if row.state in repository.UNENDED:
                raise ConflictError(f"The evaluation is {row.state}.", remedy="Cancel it first.")
            await repository.delete_evaluation_rows(session, evaluation_id)
            await self.redis.delete(*streams.run_keys(evaluation_id))

    async def discard_files(self, evaluation_id: str) -> None:
        """Delete the copy of the weights, if there is one, of an evaluation that has ended."""
        folder = self.settings.run_folder(evaluation_id)
        if await asyncio.to_thread(folder.exists):
            await self.runs.settle_folder(folder)


def _row(
    evaluation_id: str,
    request: EvaluationRequest,
    run: Run | None,
    step: int | None,
    config: RunConfig,
    pinned: Pinned,
) -> EvaluationRow:
    now = time.time()
    model = str(run.config["model"]["path"]) if run else config.model.path
    return EvaluationRow(
        id=evaluation_id,
        name=request.name or _default_name(model, run, step),
        state="queued",
        reason="",
        config=config.model_dump(mode="json"),
        model=model,
        of_run=run.id if run else None,
        of_step=step,
        weights=pinned.weights,
        rollout_servers=[],
        num_done=0,
        created_at=now,
        queued_at=now,
    )


def _default_name(model: str, run: Run | None, step: int | None) -> str:
    if run is not None:
        ending = f" step {step}"
        return run.name[: 100 - len(ending)] + ending
    return re.sub(r"[^A-Za-z0-9 ._-]+", "-", PurePath(model).name).lstrip(" ._-")[:100] or "model"
