"""The learner service: keeps the training program of the assigned run running.

It follows the assignment, owns the ranks on this machine and forwards their progress to the heartbeat. If ranks are on
several machines (`machines`), the main learner also tells the others what to run: a rank that is lost anywhere ends
them all, and the run resumes from its newest checkpoint. This module imports nothing heavy, so that the service starts
quickly and stays small.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.contracts import streams
from services.contracts.errors import ConfigurationError, TurnoutError
from services.contracts.events import Note, RunStateChanged
from services.contracts.heartbeat import MACHINE
from services.contracts.run_config import read_run_config
from services.learner.connections.files import add_file_routes
from services.learner.connections.progress_pipe import EXIT_NO_QUEUE, EXIT_REFUSED, EXIT_REPORTED, Progress
from services.learner.machines.crew import Crew, Fault
from services.learner.machines.helper import Helper
from services.learner.processes import STOP_SECONDS, RankProcesses, Share, cause_of
from services.learner.retries import Attempts
from services.learner.settings import load_learner_settings
from services.runtime.address import machine_id
from services.runtime.connection import until_served
from services.runtime.logs import get_logger
from services.runtime.process import Service
from services.runtime.queue.queue import Queue
from services.runtime.settings import Settings

log = get_logger(__name__)

POLL_SECONDS = 0.25
REPORT_WAIT_SECONDS = 2.0
"""For another machine to say why its rank ended, which rank 0 may see first."""
QUIET_SECONDS = 1.5
"""Three reports. A machine that has missed them is named if rank 0 has lost its connections."""


async def loops(service: Service) -> None:
    """Keep the training program of the assigned run, or another learner's ranks, running until cancelled."""
    own = load_learner_settings(service.settings)
    if own.main:
        await Helper(service.presence, main=own.main, token=service.settings.service_token).run()
        return
    service.presence.details[MACHINE] = machine_id()
    add_file_routes(service.app, service.settings)
    crew = None
    if own.machines > 1:
        crew = Crew(service.presence, own.machines - 1, own.meeting_port)
        crew.add_routes(service.app, service.settings)
    await Learner(service.presence, redis=service.redis, crew=crew).run()


def check(settings: Settings) -> None:
    """Raise `ConfigurationError` if the learner's own settings cannot work."""
    load_learner_settings(settings)


@dataclass(slots=True, kw_only=True)
class Learner(RankProcesses):
    """Runs one training program at a time."""

    redis: Redis
    attempts: Attempts = field(default_factory=Attempts)
    crew: Crew | None = None
    """Other machines that have ranks of the program."""
    _attempt_seen: bytes | None = None
    """`streams.attempt` of the run when its program was started."""

    async def run(self) -> None:
        """Consumes the assignment; produces a running program for it; waits for assignments. Runs until cancelled."""
        try:
            while True:
                self.presence.state, self.presence.run_id = "idle", None
                self.presence.weight_version = None
                self.presence.waits_for("a run")
                run_id = await self._next_assignment(None)
                await self._serve(run_id or "")
        finally:
            await self._end_processes()

    async def _next_assignment(self, current: str | None) -> str | None:
        """Wait until the assignment differs from `current`, and return it."""
        while True:
            assigned = await self._assignment(current)
            if assigned != current:
                return assigned
            await asyncio.sleep(POLL_SECONDS)

    async def _assignment(self, current: str | None) -> str | None:
        try:
            return await self.presence.assignment()
        except RedisError as error:
            log.warning("assignment unreadable", error=str(error))
            return current

    async def _serve(self, run_id: str) -> None:
        """Run the program for `run_id`, restarting it after crashes, until it ends or the run is reassigned."""
        self.attempts = Attempts(self.attempts.limit, self.attempts.first_pause_seconds)
        while await self._assignment(run_id) == run_id:
            self.presence.state, self.presence.run_id = "starting", run_id
            self.presence.waits_for("")
            try:
                code = await self._attempt(run_id)
            except ConfigurationError as error:
                await self._fail(run_id, str(error))
                return
            if code is None:
                return
            if code in (0, EXIT_REPORTED):
                self.presence.state = "ready" if code == 0 else "failed"
                await self._wait_for_change(run_id)
                return
            if code == EXIT_NO_QUEUE:
                await self._until_queue_answers()
                continue
            pause = self.attempts.crashed()
            reason = self._error or cause_of(code)
            if pause is None:
                await self._give_up(run_id, reason)
                return
            await self._note(run_id, f"The training program crashed ({reason}). It restarts in {pause:.0f} s.")
            self.presence.waits_for("a pause after a crash")
            await asyncio.sleep(pause)

    async def _until_queue_answers(self) -> None:
        """Wait indefinitely. If an outage counted as a crash, the run would fail without anyone being told."""
        self.presence.waits_for("the queue server")
        await until_served(self.presence.publish)  # a write, because a full disk or memory refuses writes only

    async def _attempt(self, run_id: str) -> int | None:
        """Run the program once. Returns its exit code, or None if it was stopped because the run was reassigned.

        Raises:
            ConfigurationError: it would fail however often it were started.
        """
        self._error = ""
        self._attempt_seen = await self._attempt_of_run(run_id)
        gone = asyncio.create_task(self._next_assignment(run_id))
        life = asyncio.create_task(self._life(run_id))
        try:
            await asyncio.wait({gone, life}, return_when=asyncio.FIRST_COMPLETED)
            return await life if life.done() else None
        finally:
            for task in (gone, life):
                task.cancel()
            if self.crew is not None:
                self.crew.dismiss()
            await self._end_processes()

    async def _life(self, run_id: str) -> int:
        """Start the program, see its end."""
        try:
            num_ranks = await self._num_ranks(run_id)
            share = Share(num_ranks)
            if self.crew is not None:
                gathered = await self._gather(self.crew, run_id, num_ranks)
                if gathered is None:
                    return 0
                share = gathered
        except RedisError:
            return EXIT_NO_QUEUE
        except ConfigurationError:
            raise
        except TurnoutError as error:
            self._error = str(error)
            return 1
        try:
            reader = await self.start(run_id, share)
        except OSError as error:  # no memory or no process left, which may pass
            self._error = f"it could not be started: {error}"
            return 1
        if self.crew is None:
            code = await self._first_end()
        else:
            self.crew.started()
            code = await self._first_end_anywhere(self.crew)
        await asyncio.wait({reader}, timeout=2)
        return code

    async def _gather(self, crew: Crew, run_id: str, num_ranks: int) -> Share | None:
        """This machine's share once all are there; None if the run was stopped instead, which no program could do."""
        gathering = asyncio.create_task(crew.gather(run_id, num_ranks, lambda text: self._note(run_id, text)))
        try:
            while not gathering.done():
                await asyncio.wait({gathering}, timeout=POLL_SECONDS)
                desired = await self.redis.get(streams.desired(run_id))
                if not gathering.done() and desired in (b"stopped", b"stopped_now"):
                    await self._tell(RunStateChanged(run_id=run_id, at=time.time(), state="stopped", reason="as asked"))
                    return None
            return gathering.result()
        finally:
            gathering.cancel()

    async def _first_end_anywhere(self, crew: Crew) -> int:
        """As `_first_end`, with ranks on other machines: what went wrong there says more than what rank 0 saw of it."""
        here, elsewhere = asyncio.create_task(self._first_end()), asyncio.create_task(crew.fault())
        try:
            await asyncio.wait({here, elsewhere}, return_when=asyncio.FIRST_COMPLETED)
            settled = (0, EXIT_REPORTED, EXIT_NO_QUEUE)
            if here.done() and here.result() in settled:
                return here.result()
            if here.done():
                await asyncio.wait({elsewhere}, timeout=REPORT_WAIT_SECONDS)
                found = elsewhere.result() if elsewhere.done() else crew.quiet(QUIET_SECONDS)
                return here.result() if found is None else self._blame(found)
            fault = elsewhere.result()
            await asyncio.wait({here}, timeout=0 if fault.is_silent else STOP_SECONDS)
            return here.result() if here.done() and here.result() in settled else self._blame(fault)
        finally:
            for task in (here, elsewhere):
                task.cancel()

    def _blame(self, fault: Fault) -> int:
        """Exit code 1, with a reason that is another machine's. Raises `ConfigurationError` for one that stays."""
        self._error = fault.text
        if fault.code == EXIT_REFUSED:
            raise ConfigurationError(fault.text)
        return 1

    def on_progress(self, progress: Progress) -> None:
        self.attempts.progressed(progress.step)

    async def _wait_for_change(self, run_id: str) -> None:
        """Wait until the finished run is unassigned or queued again. A resume can follow so quickly that the assignment
        never appears to change."""
        self.presence.waits_for("the next run")
        while await self._assignment(run_id) == run_id:
            if await self._attempt_of_run(run_id) not in (self._attempt_seen, None):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _attempt_of_run(self, run_id: str) -> bytes | None:
        """A value that the API changes each time the run is queued; None if Redis cannot be read."""
        try:
            value = await self.redis.get(streams.attempt(run_id))
        except RedisError:
            return None
        return cast("bytes | None", value)

    async def _num_ranks(self, run_id: str) -> int:
        value = await self.redis.get(streams.config(run_id))
        if value is None:
            return 1  # the program reports what is wrong
        return read_run_config(value).training.num_ranks

    async def _give_up(self, run_id: str, reason: str) -> None:
        await self._fail(
            run_id, f"The training program crashed {self.attempts.failed} times without finishing a step: {reason}"
        )

    async def _fail(self, run_id: str, text: str) -> None:
        """End the run, then wait for another."""
        log.error("giving up", run_id=run_id, error=text)
        self.presence.state = "failed"
        await self._tell(RunStateChanged(run_id=run_id, at=time.time(), state="failed", reason=text))
        await self._wait_for_change(run_id)

    async def _tell(self, event: RunStateChanged) -> None:
        """Publish it, however long that takes."""
        while not await self._publish(event):
            await asyncio.sleep(POLL_SECONDS)

    async def _note(self, run_id: str, text: str) -> None:
        log.warning(text, run_id=run_id)
        await self._publish(
            Note(run_id=run_id, at=time.time(), level="warning", source=self.presence.instance, text=text)
        )

    async def _publish(self, event: msgspec.Struct) -> bool:
        queue = Queue(self.redis, streams.GROUP_LEARNER, self.presence.instance)
        try:
            await queue.publish(streams.EVENTS, event)
        except RedisError as error:
            log.error("event not sent", error=str(error))
            return False
        return True
