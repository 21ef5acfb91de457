"""Supervised workers: judging that may hang, crash or eat memory runs in processes that can be killed and replaced.

What becomes of a task:

- The reward answers: its judgement.
- It takes more CPU time or memory than a reply may: the reply is unreadable, which earns 0. CPU time is the task's own,
  so a busy machine does not bring this about.
- It takes too long on the clock while it used little CPU time: the machine is overloaded (or the reward waits for
  something). It is tried once more with no other task beside it; then it is a fault of ours.
- The worker dies: likewise.

For rewards of installed packages, running out of CPU time or memory is a fault as well: we cannot tell whether text or
reward is to blame.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from services.contracts.errors import InfrastructureError
from services.contracts.messages import Question
from services.runtime.logs import get_logger
from services.verifier.gate import Gate
from services.verifier.rewards import registry
from services.verifier.rewards.registry import Judgement, QuestionError
from services.verifier.zygote import HEADER, Answer, Finding, Order, Task

log = get_logger(__name__)

UNREADABLE: Final = Judgement(
    reward=0.0,
    correct=False,
    feedback="The answer could not be read within the limits of time and memory: write it more simply.",
)
LOAD_SECONDS: Final = 120.0
_EXIT_SECONDS: Final = 10.0


@dataclass(slots=True)
class Worker:
    """One worker process and the socket to it."""

    pid: int
    kinds: frozenset[str]
    """Rewards that were loaded when it was forked."""
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    exited: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Becomes the number of the signal that ended the process; 0 for none."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt gave no finding."""

    reason: Literal["cpu", "wall", "died"]
    text: str


class Zygote:
    """The pool's side of the process that workers are forked from."""

    def __init__(self, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        command = [sys.executable, "-P", "-m", "services.verifier.zygote", str(theirs.fileno()), str(memory_bytes)]
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        paths = [os.path.abspath(path) for path in sys.path]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**keep, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self.alive = True
        self.kinds: set[str] = set()
        self._control = ours
        self._turn = asyncio.Lock()
        self._answers: asyncio.Queue[Answer | None] = asyncio.Queue()
        self._workers: dict[int, Worker] = {}
        self._early_exits: dict[int, int] = {}
        self._listening = asyncio.create_task(self._listen())

    async def load(self, kind: str) -> None:
        """Load a reward. Raises `InfrastructureError` where its import fails."""
        if kind in self.kinds:
            return
        answer = await self._ask(Order("load", kind=kind))
        if answer.error:
            raise QuestionError(
                f"Reward {kind!r} cannot be loaded: {answer.error}.", remedy="Mend or uninstall its package."
            )
        self.kinds.add(kind)

    async def fork(self) -> Worker:
        """A new worker that knows every reward loaded so far."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            kinds = frozenset(self.kinds)
            answer = await self._ask(Order("fork"), theirs.fileno())
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = Worker(answer.pid, kinds, reader, writer)
        if answer.pid in self._early_exits:
            worker.exited.set_result(self._early_exits.pop(answer.pid))
        else:
            self._workers[answer.pid] = worker
        return worker

    def kill(self, worker: Worker) -> None:
        """End a worker. The zygote does it, which knows whether the pid still means that worker."""
        worker.writer.close()
        if self.alive and not worker.exited.done():
            try:
                self._control.send(msgspec.msgpack.encode(Order("kill", pid=worker.pid)))
            except OSError as error:  # the zygote is gone or does not read: end it, and its workers with it
                log.warning("zygote does not answer", error=str(error))
                self.process.kill()

    async def close(self) -> None:
        """End the zygote and all workers."""
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._end()
        for worker in list(self._workers.values()):
            worker.writer.close()
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    async def _ask(self, order: Order, *descriptors: int) -> Answer:
        async with self._turn:
            if not self.alive:
                raise InfrastructureError("The process that workers are forked from has ended.")
            try:
                socket.send_fds(self._control, [msgspec.msgpack.encode(order)], list(descriptors))
                answer = await asyncio.wait_for(self._answers.get(), LOAD_SECONDS)
            except asyncio.CancelledError:
                self.process.kill()  # or its answer would be taken for the next order's
                raise
            except (OSError, TimeoutError) as error:
                self.process.kill()
                raise InfrastructureError(f"The process that workers are forked from failed: {error!r}.") from error
        if answer is None:
            raise InfrastructureError("The process that workers are forked from has ended.")
        return answer

    async def _listen(self) -> None:
        """Consumes the zygote's answers until it ends."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._control, 1 << 16)
            except OSError:
                data = b""
            if not data:
                return self._end()
            answer = msgspec.msgpack.decode(data, type=Answer)
            if answer.what != "exited":
                self._answers.put_nowait(answer)
                continue
            worker = self._workers.pop(answer.pid, None)
            if worker is None:
                self._early_exits[answer.pid] = answer.signal
            elif not worker.exited.done():
                worker.exited.set_result(answer.signal)

    def _end(self) -> None:
        if self.alive:
            self.alive = False
            self._control.close()
            self._answers.put_nowait(None)
            for worker in self._workers.values():
                if not worker.exited.done():
                    worker.exited.set_result(int(signal.SIGKILL))


class WorkerPool:
    """Judges supervised kinds, at most `num_workers` tasks at once, first come first served."""

    def __init__(self, *, num_workers: int, cpu_seconds: float, wall_seconds: float, memory_bytes: int) -> None:
        """Limits hold for one task. Nothing is started before the first task."""
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = wall_seconds
        self.memory_bytes = memory_bytes
        self._gate = Gate(num_workers)
        self._idle: list[Worker] = []
        self._zygote: Zygote | None = None
        self._starting = asyncio.Lock()

    async def judge(self, question: Question, response_text: str, truncated: bool) -> Judgement:
        """What the reward says.

        Raises:
            InfrastructureError: worker and retry failed, or the reward itself did.
        """
        task = msgspec.msgpack.encode(Task(question, response_text, truncated, self.cpu_seconds))
        async with self._gate.beside_others():
            found = await self._attempt(question.kind, task)
        if isinstance(found, Failure) and found.reason != "cpu":
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

    async def close(self) -> None:
        """End all processes."""
        if self._zygote is not None:
            await self._zygote.close()
            self._zygote = None
        self._idle.clear()

    async def _attempt(self, kind: str, task: bytes) -> Finding | Failure:
        """One try. The worker goes back to the idle ones only if it answered."""
        try:
            zygote, worker = await self._take(kind)
        except QuestionError:
            raise
        except InfrastructureError as error:
            return Failure("died", error.message)
        finding: Finding | None = None
        cpu_before = cpu_seconds_of(worker.pid)
        try:
            async with asyncio.timeout(self.wall_seconds):
                worker.writer.write(HEADER.pack(len(task)) + task)
                await worker.writer.drain()
                (length,) = HEADER.unpack(await worker.reader.readexactly(HEADER.size))
                finding = msgspec.msgpack.decode(await worker.reader.readexactly(length), type=Finding)
        except TimeoutError:
            used = cpu_seconds_of(worker.pid) - cpu_before
            return Failure("wall", f"no answer in {self.wall_seconds:g} s, of which {used:.1f} s were computed")
        except (asyncio.IncompleteReadError, OSError):
            number = await _exit_signal(worker)
            if number == signal.SIGPROF:
                return Failure("cpu", f"more than {self.cpu_seconds:g} s of CPU time")
            return Failure("died", f"the worker process died (signal {number})")
        finally:
            if finding is None or finding.out_of_memory or not zygote.alive:
                zygote.kill(worker)
            else:
                self._idle.append(worker)
        return finding

    async def _take(self, kind: str) -> tuple[Zygote, Worker]:
        """An idle worker that knows `kind`, or a new one. Idle ones that ended or do not know it are dropped."""
        async with self._starting:
            if self._zygote is None or not self._zygote.alive:
                if self._zygote is not None:
                    await self._zygote.close()
                self._zygote, self._idle = Zygote(self.memory_bytes), []
        zygote = self._zygote
        await zygote.load(kind)
        while self._idle:
            worker = self._idle.pop()
            if kind in worker.kinds and not worker.exited.done() and not worker.reader.at_eof():
                return zygote, worker
            zygote.kill(worker)
        return zygote, await zygote.fork()


async def _exit_signal(worker: Worker) -> int | None:
    """The signal that ended a worker whose socket closed; None where that is not known in time."""
    try:
        return await asyncio.wait_for(asyncio.shield(worker.exited), _EXIT_SECONDS)
    except TimeoutError:
        return None


def cpu_seconds_of(pid: int) -> float:
    """CPU time that a process has used, user and system; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
