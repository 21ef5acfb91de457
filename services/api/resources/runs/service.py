"""Operations on runs: create, fork, stop, pause, resume, delete. One transaction each; the scheduler does the rest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from sqlalchemy.exc import IntegrityError

from services.api.live.journal import Journal
from services.api.live.signals import Signals
from services.api.resources.runs.fork import choose_checkpoint, forked_config, hand_over, settle, unsettle, unsettled
from services.api.resources.runs.rows import RowChecks
from services.api.resources.runs.schemas import ForkRequest, RunChanges
from services.api.storage import history, runs
from services.api.storage.database import Database
from services.api.storage.evaluations import needs_files
from services.api.storage.runs import Run
from services.contracts import streams
from services.contracts.errors import ConfigurationError, ConflictError
from services.contracts.events import CheckpointWritten, Event
from services.contracts.run_config import RunConfig
from services.contracts.states import TERMINAL_STATES, RunState, check_transition
from services.runtime.inputs import check_inputs
from services.runtime.logs import get_logger
from services.runtime.presence import list_services
from services.runtime.settings import Settings
from services.runtime.weights.checkpoint_files import checkpoint_folder

log = get_logger(__name__)


class RunService:
    """Changes runs at a user's request."""

    def __init__(
        self, settings: Settings, redis: Redis, database: Database, journal: Journal, signals: Signals
    ) -> None:
        self.settings = settings
        self.redis = redis
        self.database = database
        self.journal = journal
        self.signals = signals
        self.rows = RowChecks()

    async def create(
        self, config: RunConfig, idempotency_key: str | None = None, *, priority: int = 0, created_by: str = ""
    ) -> Run:
        """Queue a new run; a repeated key returns the run created the first time. `created_by`: id of the caller's key.

        Raises:
            ConfigurationError: an input is missing, rows of a data file cannot be used, or the key was used with
                another configuration.
        """
        digest = _digest(config.model_dump(mode="json"))
        earlier = await self._created_before(idempotency_key, digest)
        if earlier is not None:
            return earlier
        unchecked = await self.check_inputs(config)
        run = _queued(config, idempotency_key, digest, priority, created_by)
        added = await self._add(run)
        if added is run:
            for sentence in unchecked:
                await self.journal.note(run.id, "info", sentence)
        return added

    async def check_inputs(self, config: RunConfig, prefix: str = "") -> list[str]:
        """Check the model and the data files with their rows; says which rows were not checked (`RowChecks`)."""
        await asyncio.to_thread(check_inputs, config, self.settings, prefix)
        return await self.rows.check(config, prefix)

    async def fork(
        self, run_id: str, request: ForkRequest, idempotency_key: str | None = None, *, created_by: str = ""
    ) -> Run:
        """Queue a run that continues from a checkpoint of `run_id`; a repeated key returns the run created the first
        time.

        Raises:
            ConfigurationError: a change is wrong or impossible, or there is no such checkpoint.
            ConflictError: the run has no checkpoint.
        """
        digest = _digest(["fork", run_id, request.model_dump(mode="json")])
        earlier = await self._created_before(idempotency_key, digest)
        if earlier is not None:
            return earlier
        async with self.database.read() as session:
            parent = await runs.get_run(session, run_id)
        parent_folder = self.settings.run_folder(parent.id)
        step = await asyncio.to_thread(choose_checkpoint, parent_folder, request.checkpoint)
        config = forked_config(parent.config, request, step)
        unchecked = await self.check_inputs(config, "changes.")
        child = _queued(config, idempotency_key, digest, parent.priority, created_by)
        child.step, child.forked_from_run, child.forked_from_step = step, parent.id, step
        folder = self.settings.run_folder(child.id)
        try:
            size = await asyncio.to_thread(hand_over, parent_folder, folder, step)
            path = str(checkpoint_folder(folder, step).resolve())
            record = CheckpointWritten(run_id=child.id, step=step, at=time.time(), path=path, bytes=size, seconds=0.0)
            added = await self._add(child, record)
        finally:
            await self.settle_folder(folder)
        if added is child:  # otherwise another request with the same key was faster
            for sentence in (f"Forked from run {parent.id} at step {step}.", *unchecked):
                await self.journal.note(child.id, "info", sentence)
        return added

    async def settle(self) -> None:
        """Clean up forks, evaluations and deletions that a killed API left unfinished. Call this at start, before any
        request."""
        for folder in await asyncio.to_thread(unsettled, self.settings.runs_folder):
            await self.settle_folder(folder)

    async def settle_folder(self, folder: Path) -> None:
        """Keep a run's files if the run is stored, whatever became of the request, and an evaluation's until it ends;
        otherwise delete them."""
        async with self.database.read() as session:
            stored = await session.get(Run, folder.name) is not None
            if await needs_files(session, folder.name):
                return  # marked until it ends
        if stored:
            await asyncio.to_thread(settle, folder)
            return
        log.info("unstored run deleted", run_id=folder.name)
        for place in (self.settings.weights_of(folder.name), folder):
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    async def _add(self, run: Run, *records: Event) -> Run:
        """Store a new run. If its idempotency key was taken in the meantime, return the run that has it."""
        try:
            async with self.database.write() as session:
                session.add(run)
                for record in records:
                    await history.store(session, record)
        except IntegrityError:
            earlier = await self._created_before(run.idempotency_key, run.request_digest)
            if earlier is None:
                raise
            return earlier
        self.signals.schedule.set()
        return run

    async def _created_before(self, key: str | None, digest: str) -> Run | None:
        if key is None:
            return None
        async with self.database.read() as session:
            run = await runs.run_of_key(session, key)
        if run is not None and run.request_digest != digest:
            raise ConfigurationError(
                "This Idempotency-Key was already used for a run with a different configuration.",
                remedy="Use a new key for a new run.",
                field="Idempotency-Key",
            )
        return run

    async def stop(self, run_id: str, *, now: bool = False) -> Run:
        """End the run: with a checkpoint, or immediately. A run without services is always stopped immediately.

        Raises:
            ConflictError: the run has succeeded or failed.
        """
        alive = {record.instance for record in await list_services(self.redis)} if now else set()
        async with self.database.write() as session:
            run = await runs.get_run(session, run_id)
            immediate = run.state == "queued" or (now and run.learner not in alive)
            told = []
            if run.state != "stopped":
                target: RunState = "stopped" if immediate else "stopping"
                told = await self.journal.change_state(session, run, target, "stopped by request")
                run.desired = "stopped_now" if now or run.desired == "stopped_now" else "stopped"
        self.journal.tell(told)
        self.signals.schedule.set()
        return run

    async def pause(self, run_id: str) -> Run:
        """Ask the learner to pause after its step; the state changes once it has.

        Raises:
            ConflictError: the run is not starting, running or paused.
        """
        async with self.database.write() as session:
            run = await runs.get_run(session, run_id)
            check_transition(run.state, "paused")
            run.desired = "paused"
        self.signals.schedule.set()
        return run

    async def resume(self, run_id: str) -> Run:
        """Resume a paused run, or queue a stopped or failed one again to continue from its checkpoint.

        Raises:
            ConflictError: the run has succeeded or is stopping.
        """
        async with self.database.write() as session:
            run = await runs.get_run(session, run_id)
            told = []
            if run.state in TERMINAL_STATES:
                told = await self.journal.change_state(session, run, "queued", "resumed")
            elif run.state == "stopping":
                raise ConflictError(
                    "The run is stopping; it cannot be resumed yet.", remedy="Resume it once it has stopped."
                )
            run.desired = "running"
        self.journal.tell(told)
        self.signals.schedule.set()
        return run

    async def change(self, run_id: str, changes: RunChanges) -> Run:
        """Change what a user may change at any time. Raises `NotFoundError`."""
        values = changes.model_dump(exclude_none=True)
        if "tags" in values:
            values["tags"] = sorted(set(values["tags"]))
        async with self.database.write() as session:
            run = await runs.get_run(session, run_id)
            for name, value in values.items():
                setattr(run, name, value)
        self.signals.schedule.set()
        return run

    async def delete(self, run_id: str) -> None:
        """Delete a run that has ended: history, queues, files. The files go last, outside the transaction: they can
        take long, and if anything before them fails, the run is unchanged.

        Raises:
            ConflictError: the run has not ended.
        """
        async with self.database.read() as session:
            _require_ended(await runs.get_run(session, run_id))
        folder = self.settings.run_folder(run_id)
        with contextlib.suppress(OSError):  # a full disk: files then remain only if the API is killed
            await asyncio.to_thread(unsettle, folder)
        try:
            async with self.database.write() as session:
                _require_ended(await runs.get_run(session, run_id))
                await runs.delete_run_rows(session, run_id)
                await self.redis.delete(*streams.run_keys(run_id))
        finally:
            await self.settle_folder(folder)


def _require_ended(run: Run) -> None:
    if run.state not in TERMINAL_STATES:
        raise ConflictError(f"The run is {run.state}; only ended runs can be deleted.", remedy="Stop it first.")


def _queued(config: RunConfig, idempotency_key: str | None, digest: str, priority: int, created_by: str) -> Run:
    now = time.time()
    return Run(
        id=new_run_id(config.name),
        name=config.name,
        state="queued",
        desired="running",
        reason="",
        config=config.model_dump(mode="json"),
        created_at=now,
        queued_at=now,
        step=0,
        learner_said="",
        rollout_servers=[],
        priority=priority,
        created_by=created_by,
        tags=[],
        note="",
        idempotency_key=idempotency_key,
        request_digest=digest,
    )


def _digest(request: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(request, order="deterministic")).hexdigest()


def new_run_id(name: str) -> str:
    """A recognizable id that is safe in file names, keys and labels: `demo-3f9c2a1b`."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-")
    return f"{slug or 'run'}-{secrets.token_hex(4)}"
