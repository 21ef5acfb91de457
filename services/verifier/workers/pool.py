"""Supervised workers: rewards that may hang, crash or use too much memory run in processes that can be replaced.

The outcomes of a task:

- The reward returns: its judgement.
- It exceeds its CPU time or memory: the reply is unreadable and earns 0. CPU time is the task's own, so a busy machine
  does not cause this.
- It exceeds its wall time because it waited for a core, as measured by the kernel: the machine is overloaded. The task
  is tried again without other tasks, if its group still has its second try. If that fails as well, it is a fault.
- The worker dies: the same.
- It exceeds its wall time for another reason: the reward waits for something, which is a fault immediately.

For rewards of installed packages, exceeding CPU time or memory is a fault as well, because the text or the reward may
be to blame.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import psutil

from services.contracts.errors import InfrastructureError, QuestionError
from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.verifier.gate import Gate
from services.verifier.rewards import registry
from services.verifier.workers.forkserver import HEADER, Finding, Task
from services.verifier.workers.forkserver_process import ForkServer, Worker

UNREADABLE: Final = Judgement(
    reward=0.0,
    correct=False,
    feedback="The answer could not be read within the limits of time and memory: write it more simply.",
)
TASKS_BEFORE_RENEWAL: Final = 1000
"""Number of tasks after which a worker is replaced, because libraries' caches grow."""
STARVED_SHARE: Final = 0.5
"""A task that waited for a core for this share of its wall time was starved."""
_EXIT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt returned no finding."""

    reason: Literal["cpu", "slept", "starved", "died"]
    text: str


class WorkerPool:
    """Judges supervised kinds, at most `num_workers` tasks at once, in order of arrival."""

    def __init__(self, *, num_workers: int, cpu_seconds: float, wall_seconds: float, memory_bytes: int) -> None:
        """The limits are per task. No process is started before the first task."""
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = wall_seconds
        self.memory_bytes = memory_bytes
        self._gate = Gate(num_workers)
        self._idle: list[Worker] = []
        self._server: ForkServer | None = None
        self._starting = asyncio.Lock()

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        """The reward's judgement.

        Raises:
            InfrastructureError: the worker and the retry failed, or the reward itself did.
        """
        task = msgspec.msgpack.encode(Task(question, response_text, truncated, self.cpu_seconds))
        async with self._gate.beside_others():
            found = await self._attempt(question.kind, task)
        if isinstance(found, Failure) and found.reason in ("starved", "died") and self._gate.may_try_again():
            async with self._gate.alone():
                found = await self._attempt(question.kind, task)
        if isinstance(found, Finding) and found.judgement is not None:
            return found.judgement
        if isinstance(found, Finding) and not found.out_of_memory:
            raise QuestionError(f"Reward {question.kind!r} failed: {found.fault}", remedy=found.remedy)
        limit_reached = isinstance(found, Finding) or found.reason == "cpu"
        if limit_reached and question.kind in registry.BUILT_IN:
            return UNREADABLE
        what = "ran out of memory" if isinstance(found, Finding) else found.text
        raise InfrastructureError(
            f"Reward {question.kind!r}: {what}.",
            remedy="Make it faster and smaller, or raise TURNOUT_VERIFIER_TASK_CPU_SECONDS, "
            "TURNOUT_VERIFIER_TASK_WALL_SECONDS or TURNOUT_VERIFIER_WORKER_MEMORY_MB.",
        )

    async def aclose(self) -> None:
        """Kill all processes."""
        if self._server is not None:
            await self._server.close()
            self._server = None
        self._idle.clear()

    async def _attempt(self, kind: str, task: bytes) -> Finding | Failure:
        """One attempt. The worker becomes idle again only if it answered."""
        try:
            server, worker = await self._take(kind)
        except QuestionError:
            raise
        except InfrastructureError as error:
            return Failure("died", error.message)
        finding: Finding | None = None
        worker.num_tasks += 1
        cpu_before, queued_before = cpu_seconds_of(worker.pid), queued_seconds_of(worker.pid)
        try:
            async with asyncio.timeout(self.wall_seconds):
                worker.writer.write(HEADER.pack(len(task)) + task)
                await worker.writer.drain()
                (length,) = HEADER.unpack(await worker.reader.readexactly(HEADER.size))
                finding = msgspec.msgpack.decode(await worker.reader.readexactly(length), type=Finding)
        except TimeoutError:
            used = cpu_seconds_of(worker.pid) - cpu_before
            queued = queued_seconds_of(worker.pid) - queued_before
            return Failure(
                "starved" if queued >= STARVED_SHARE * self.wall_seconds else "slept",
                f"timed out after {self.wall_seconds:g} s: {used:.1f} s computing, {queued:.1f} s waiting for a core",
            )
        except (asyncio.IncompleteReadError, OSError):
            number = await _exit_signal(worker)
            if number == signal.SIGPROF:
                return Failure("cpu", f"more than {self.cpu_seconds:g} s of CPU time")
            return Failure("died", f"the worker process died (signal {number})")
        finally:
            worn = worker.num_tasks >= TASKS_BEFORE_RENEWAL
            if finding is None or finding.out_of_memory or worn or not server.alive:
                server.kill(worker)
            else:
                self._idle.append(worker)
        return finding

    async def _take(self, kind: str) -> tuple[ForkServer, Worker]:
        """An idle worker that has `kind` loaded, or another one. Kills idle workers that exited or lack it."""
        async with self._starting:
            if self._server is None or not self._server.alive:
                if self._server is not None:
                    await self._server.close()
                self._server, self._idle = ForkServer(self.memory_bytes), []
        server = self._server
        await server.load(kind)
        while self._idle:
            worker = self._idle.pop()
            if kind in worker.kinds and not worker.exited.done() and not worker.reader.at_eof():
                return server, worker
            server.kill(worker)
        return server, await server.fork()


async def _exit_signal(worker: Worker) -> int | None:
    """The signal that ended a worker whose socket closed; None if that does not become known in time."""
    try:
        return await asyncio.wait_for(asyncio.shield(worker.exited), _EXIT_SECONDS)
    except TimeoutError:
        return None


def queued_seconds_of(pid: int) -> float:
    """Seconds that a process's main thread has waited for a core; 0 if it is gone or the kernel does not say."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def cpu_seconds_of(pid: int) -> float:
    """CPU time that a process has used, user and system; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
