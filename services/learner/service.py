"""The learner service: keeps the training program of the assigned run running.

It follows the assignment, owns the processes (one per rank) and forwards their progress to the heartbeat. It imports
nothing heavy, so that it starts quickly and stays small.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.contracts import streams
from services.contracts.errors import TurnoutError
from services.contracts.events import Note, RunStateChanged
from services.contracts.run_config import read_run_config
from services.learner.connections.files import add_file_routes
from services.learner.connections.progress_pipe import (
    EXIT_NO_QUEUE,
    EXIT_REPORTED,
    EXIT_TERMINATED,
    MEETING_VARIABLE,
    PIPE_VARIABLE,
    RUN_VARIABLE,
    SERVICE_VARIABLE,
    Progress,
)
from services.learner.retries import Attempts
from services.runtime.connection import until_served
from services.runtime.logs import get_logger
from services.runtime.presence import Presence
from services.runtime.process import Service
from services.runtime.queue.queue import Queue

log = get_logger(__name__)

POLL_SECONDS = 0.25
STOP_SECONDS = 10.0
PROGRAM = "services.learner.program.main"


async def loops(service: Service) -> None:
    """Keep the training program of the assigned run running, until cancelled."""
    add_file_routes(service.app, service.settings)
    await Learner(service.redis, service.presence).run()


@dataclass(slots=True)
class Learner:
    """Runs one training program at a time."""

    redis: Redis
    presence: Presence
    attempts: Attempts = field(default_factory=Attempts)
    _processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    _meeting: tempfile.TemporaryDirectory[str] | None = None
    """Folder with the file through which the ranks find each other."""
    _error: str = ""
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
            code = await self._attempt(run_id)
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
            reason = self._error or _cause(code)
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
        """Run the program once. Returns its exit code, or None if it was stopped because the run was reassigned."""
        self._error = ""
        try:
            num_ranks = await self._num_ranks(run_id)
        except TurnoutError as error:
            self._error = str(error)
            return 1
        except RedisError:
            return EXIT_NO_QUEUE
        self._attempt_seen = await self._attempt_of_run(run_id)
        reader = await self._start(run_id, num_ranks)
        gone = asyncio.create_task(self._next_assignment(run_id))
        ended = asyncio.create_task(self._first_end())
        try:
            await asyncio.wait({gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await asyncio.wait({reader}, timeout=2)
                return ended.result()
            return None
        finally:
            for task in (gone, ended):
                task.cancel()
            await self._end_processes()
            reader.cancel()

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

    async def _start(self, run_id: str, num_ranks: int) -> asyncio.Task[None]:
        """Start one process per rank. Returns the task that reads rank 0's progress."""
        read_end, write_end = os.pipe()
        self._meeting = tempfile.TemporaryDirectory(prefix="turnout-ranks-", ignore_cleanup_errors=True)
        for rank in range(num_ranks):
            environment = os.environ | {
                RUN_VARIABLE: run_id,
                SERVICE_VARIABLE: str(os.getpid()),
                "TURNOUT_INSTANCE": self.presence.instance,
                "TURNOUT_ADVERTISE_URL": self.presence.url,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_ranks),
                MEETING_VARIABLE: os.path.join(self._meeting.name, "store"),
            }
            passed: tuple[int, ...] = ()
            if rank == 0:
                environment[PIPE_VARIABLE] = str(write_end)
                passed = (write_end,)
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable, "-m", PROGRAM, env=environment, pass_fds=passed, stdin=asyncio.subprocess.DEVNULL
                )
            )
        os.close(write_end)
        self.presence.details["pids"] = " ".join(str(process.pid) for process in self._processes)
        log.info("training program started", run_id=run_id, pids=self.presence.details["pids"])
        return asyncio.create_task(self._read_progress(read_end))

    async def _read_progress(self, descriptor: int) -> None:
        """Consumes progress lines; produces heartbeat fields; ends when the pipe closes."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
        )
        try:
            while line := await reader.readline():
                progress = msgspec.json.decode(line, type=Progress)
                if progress.state in ("starting", "ready", "updating"):
                    self.presence.state = progress.state  # type: ignore[assignment]
                self.presence.weight_version = progress.weight_version
                self.presence.waits_for(progress.waiting_for)
                self.presence.tokens_total = progress.tokens_total
                self._error = progress.error or self._error
                self.attempts.progressed(progress.step)
        finally:
            transport.close()

    async def _first_end(self) -> int:
        """Wait for the first rank to exit. Returns the exit code that counts: rank 0's, or that of a rank that failed
        before it.

        Only rank 0 reports a fault that all ranks meet, such as numbers that are not finite, so it may be the last to
        exit. It gets `STOP_SECONDS` to do so.
        """
        waits = [asyncio.create_task(process.wait()) for process in self._processes]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            bad = [] if waits[0].done() else [wait.result() for wait in waits[1:] if wait.done() and wait.result()]
            await asyncio.wait(waits[:1], timeout=STOP_SECONDS)
            code = waits[0].result() if waits[0].done() else 1
            if not bad or code in (0, EXIT_REPORTED, EXIT_NO_QUEUE):
                return code
            if bad[0] < 0:
                self._error = ""  # rank 0's error is only a consequence of the other's death
            return bad[0]
        finally:
            for wait in waits:
                wait.cancel()

    async def _end_processes(self) -> None:
        """Terminate all processes, then kill those that remain. This finishes even if it is cancelled repeatedly, as it
        is when the service shuts down."""
        ending = asyncio.create_task(self._end_all())
        cancelled = False
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    async def _end_all(self) -> None:
        for send, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
            running = [process for process in self._processes if process.returncode is None]
            for process in running:
                process.send_signal(send)
            if running:
                await asyncio.wait([asyncio.create_task(process.wait()) for process in running], timeout=seconds)
        self._processes.clear()
        if self._meeting is not None:
            self._meeting.cleanup()
            self._meeting = None
        self.presence.details.pop("pids", None)

    async def _give_up(self, run_id: str, reason: str) -> None:
        text = f"The training program crashed {self.attempts.failed} times without finishing a step: {reason}"
        log.error("giving up", run_id=run_id, error=text)
        self.presence.state = "failed"
        event = RunStateChanged(run_id=run_id, at=time.time(), state="failed", reason=text)
        while not await self._publish(event):
            await asyncio.sleep(POLL_SECONDS)
        await self._wait_for_change(run_id)

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


def _cause(code: int) -> str:
    code = -signal.SIGTERM if code == EXIT_TERMINATED else code
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", possibly out of memory" if -code == signal.SIGKILL else "")
    return f"exit code {code}"
