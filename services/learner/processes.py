"""The training program's processes on this machine, one for each rank. No heavy import here."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

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
from services.runtime.logs import get_logger
from services.runtime.presence import Presence

log = get_logger(__name__)
STOP_SECONDS = 10.0
PROGRAM = "services.learner.program.main"


@dataclass(frozen=True, slots=True)
class Share:
    """The ranks of one attempt that are on this machine."""

    num_ranks: int
    first_rank: int = 0
    world_size: int = 0
    """Ranks on all machines; 0: those here."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Where the ranks meet, if they are on several machines; else they meet in a file."""
    descriptors: Sequence[int] = ()
    """Open files that the first rank needs."""


@dataclass(slots=True)
class RankProcesses:
    """Runs one share at a time."""

    presence: Presence
    _processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    _meeting: tempfile.TemporaryDirectory[str] | None = None
    """Folder with the file through which the ranks find each other."""
    _error: str = ""
    """Why the first rank says that it ends."""

    async def start(self, run_id: str, share: Share) -> asyncio.Task[None]:
        """Start one process per rank. Returns the task that reads the first one's progress."""
        read_end, write_end = os.pipe()
        lines = os.fdopen(read_end, "rb", buffering=0)
        self._error = ""
        self._meeting = tempfile.TemporaryDirectory(prefix="turnout-ranks-", ignore_cleanup_errors=True)
        try:
            for index in range(share.num_ranks):
                await self._start_rank(run_id, share, index, write_end)
        except BaseException:
            lines.close()
            raise
        finally:
            os.close(write_end)
        self.presence.details["pids"] = " ".join(str(process.pid) for process in self._processes)
        log.info("training program started", run_id=run_id, pids=self.presence.details["pids"])
        reader = asyncio.create_task(self._read_progress(lines))
        reader.add_done_callback(lambda _: lines.close())  # a task cancelled before its first turn does not close it
        return reader

    async def _start_rank(self, run_id: str, share: Share, index: int, pipe: int) -> None:
        assert self._meeting is not None
        environment = os.environ | {
            RUN_VARIABLE: run_id,
            SERVICE_VARIABLE: str(os.getpid()),
            "TURNOUT_INSTANCE": self.presence.instance,
            "TURNOUT_ADVERTISE_URL": self.presence.url,
            "RANK": str(share.first_rank + index),
            "LOCAL_RANK": str(index),
            "LOCAL_WORLD_SIZE": str(share.num_ranks),
            "WORLD_SIZE": str(share.world_size or share.num_ranks),
            **(share.variables or {MEETING_VARIABLE: os.path.join(self._meeting.name, "store")}),
        }
        passed: tuple[int, ...] = ()
        if index == 0:
            environment[PIPE_VARIABLE] = str(pipe)
            passed = (pipe, *share.descriptors)
        self._processes.append(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", PROGRAM, env=environment, pass_fds=passed, stdin=asyncio.subprocess.DEVNULL
            )
        )

    def on_progress(self, progress: Progress) -> None:
        """What else is to happen with a line of progress."""

    async def _read_progress(self, lines: io.FileIO) -> None:
        """Consumes progress lines; produces heartbeat fields; ends when the pipe closes."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), lines
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
                self.on_progress(progress)
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


def cause_of(code: int) -> str:
    """An exit code in words."""
    code = -signal.SIGTERM if code == EXIT_TERMINATED else code
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", possibly out of memory" if -code == signal.SIGKILL else "")
    return f"exit code {code}"
