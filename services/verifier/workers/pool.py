"""Supervised workers: judging that may hang, crash or eat memory runs in processes that can be killed and replaced.

What becomes of a task:

- The reward answers: its judgement.
- It takes more CPU time or memory than a reply may: the reply is unreadable, which earns 0. CPU time is the task's own,
  so a busy machine does not bring this about.
- It takes too long on the clock because it waited for a core, as the kernel measured: the machine is overloaded. It is
  tried once more with no other task alongside, if its group has not used up its second try; then it is a fault.
- The worker dies: likewise.
- It takes too long on the clock for another reason: the reward waits for something, which is a fault at once.

For rewards of installed packages, running out of CPU time or memory is a fault as well: we cannot tell whether text or
reward is to blame.
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
"""A worker is replaced after so many tasks: libraries' caches grow."""
STARVED_SHARE: Final = 0.5
"""A task that spent this share of its time on the clock in the queue for a core was starved."""
_EXIT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt gave no finding."""

    reason: Literal["cpu", "slept", "starved", "died"]
    text: str


class WorkerPool:
    """Judges supervised kinds, at most `num_workers` tasks at once, first come first served."""

    def __init__(self, *, num_workers: int, cpu_seconds: float, wall_seconds: float, memory_bytes: int) -> None:
        """Limits hold for one task. Nothing is started before the first task."""
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = wall_seconds
        self.memory_bytes = memory_bytes
        self._gate = Gate(num_workers)
        self._idle: list[Worker] = []
        self._server: ForkServer | None = None
        self._starting = asyncio.Lock()

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        """What the reward says.

        Raises:
            InfrastructureError: worker and retry failed, or the reward itself did.
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
            remedy="Make it quicker and smaller, or raise TURNOUT_VERIFIER_TASK_CPU_SECONDS, "
            "TURNOUT_VERIFIER_TASK_WALL_SECONDS or TURNOUT_VERIFIER_WORKER_MEMORY_MB.",
        )

    async def aclose(self) -> None:
        """End all processes."""
        if self._server is not None:
            await self._server.close()
            self._server = None
        self._idle.clear()

    async def _attempt(self, kind: str, task: bytes) -> Finding | Failure:
        """One try. The worker goes back to the idle ones only if it answered."""
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
                f"no answer in {self.wall_seconds:g} s: {used:.1f} s computing, {queued:.1f} s waiting for a core",
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
        """An idle worker that knows `kind`, or a new one. Idle ones that ended or do not know it are dropped."""
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
    """The signal that ended a worker whose socket closed; None where that is not known in time."""
    try:
        return await asyncio.wait_for(asyncio.shield(worker.exited), _EXIT_SECONDS)
    except TimeoutError:
        return None


def queued_seconds_of(pid: int) -> float:
    """How long a process's main thread has waited for a core; 0 if it is gone or the kernel does not say."""
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
