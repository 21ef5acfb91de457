"""What people do with runs: create, stop, pause, resume, delete. Each is one transaction; the scheduler follows."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import shutil
import time

import msgspec
from redis.asyncio import Redis
from sqlalchemy.exc import IntegrityError

from services.api.database import Database
from services.api.journal import Journal
from services.api.runs import repository
from services.api.runs.inputs import check_inputs
from services.api.runs.models import Run
from services.api.signals import Signals
from services.contracts import streams
from services.contracts.errors import ConfigurationError, ConflictError
from services.contracts.run_config import RunConfig
from services.contracts.states import TERMINAL_STATES, RunState, check_transition
from services.runtime.registry import list_services
from services.runtime.settings import Settings


class RunService:
    """Changes runs on a person's word."""

    def __init__(
        self, settings: Settings, redis: Redis, database: Database, journal: Journal, signals: Signals
    ) -> None:
        self.settings = settings
        self.redis = redis
        self.database = database
        self.journal = journal
        self.signals = signals

    async def create(self, config: RunConfig, idempotency_key: str | None = None) -> Run:
        """Queue a new run; a repeated key gives the run that it made the first time.

        Raises:
            ConfigurationError: an input is missing, or the key was used with another configuration.
        """
        values = config.model_dump(mode="json")
        digest = hashlib.sha256(msgspec.json.encode(values, order="deterministic")).hexdigest()
        if idempotency_key is not None:
            earlier = await self._created_before(idempotency_key, digest)
            if earlier is not None:
                return earlier
        await asyncio.to_thread(check_inputs, config, self.settings)
        now = time.time()
        run = Run(
            id=new_run_id(config.name),
            name=config.name,
            state="queued",
            desired="running",
            reason="",
            config=values,
            created_at=now,
            queued_at=now,
            step=0,
            learner_said="",
            rollout_servers=[],
            idempotency_key=idempotency_key,
            request_digest=digest,
        )
        try:
            async with self.database.write() as session:
                session.add(run)
        except IntegrityError:
            if idempotency_key is not None:  # two requests with one key at the same time: the first one won
                earlier = await self._created_before(idempotency_key, digest)
                if earlier is not None:
                    return earlier
            raise
        self.signals.schedule.set()
        return run

    async def _created_before(self, key: str, digest: str) -> Run | None:
        async with self.database.read() as session:
            run = await repository.run_of_key(session, key)
        if run is not None and run.request_digest != digest:
            raise ConfigurationError(
                "This Idempotency-Key has made a run with another configuration.",
                remedy="Use a new key for a new run.",
                field="Idempotency-Key",
            )
        return run

    async def stop(self, run_id: str, *, now: bool = False) -> Run:
        """End the run: with a checkpoint, or at once. A run that nobody works on yet is stopped at once.

        Raises:
            ConflictError: the run has succeeded or failed.
        """
        alive = {record.instance for record in await list_services(self.redis)}
        async with self.database.write() as session:
            run = await repository.get_run(session, run_id)
            abandoned = run.learner not in alive
            immediate = run.state == "queued" or (now and abandoned)
            told = []
            if run.state != "stopped":
                target: RunState = "stopped" if immediate else "stopping"
                told = await self.journal.change_state(session, run, target, "stopped by request")
                run.desired = "stopped_now" if now or run.desired == "stopped_now" else "stopped"
        self.journal.tell(told)
        self.signals.schedule.set()
        return run

    async def pause(self, run_id: str) -> Run:
        """Ask the learner to pause after its step; the state follows when it has.

        Raises:
            ConflictError: the run is not starting, running or paused.
        """
        async with self.database.write() as session:
            run = await repository.get_run(session, run_id)
            check_transition(run.state, "paused")  # type: ignore[arg-type]
            run.desired = "paused"
        self.signals.schedule.set()
        return run

    async def resume(self, run_id: str) -> Run:
        """Let a paused run go on; put a stopped or failed one back into the queue, to go on from its checkpoint.

        Raises:
            ConflictError: the run has succeeded or is stopping.
        """
        async with self.database.write() as session:
            run = await repository.get_run(session, run_id)
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

    async def delete(self, run_id: str) -> None:
        """Delete a run that has ended: files, queues, history.

        Raises:
            ConflictError: the run has not ended.
        """
        async with self.database.write() as session:
            run = await repository.get_run(session, run_id)
            if run.state not in TERMINAL_STATES:
                raise ConflictError(f"The run is {run.state}; only ended runs can be deleted.", remedy="Stop it first.")
            folder = self.settings.runs_folder / run.id
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            await self.redis.delete(*streams.run_keys(run.id))
            await repository.delete_run_rows(session, run.id)


def new_run_id(name: str) -> str:
    """An id that people recognise and that is safe in file names, keys and labels: `demo-3f9c2a1b`."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-")
    return f"{slug or 'run'}-{secrets.token_hex(4)}"
