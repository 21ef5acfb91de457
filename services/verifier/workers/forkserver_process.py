"""The pool's side of the fork server: sends orders, and receives workers and notices of their exit."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Final

import msgspec

from services.contracts.errors import InfrastructureError, QuestionError
from services.runtime.logs import get_logger
from services.verifier.workers.forkserver import Answer, Order

log = get_logger(__name__)

LOAD_SECONDS: Final = 120.0
"""Longest wait for an answer, since loading a reward's libraries can take long."""


@dataclass(slots=True)
class Worker:
    """One worker process and the socket to it."""

    pid: int
    kinds: frozenset[str]
    """Rewards that were loaded when the worker was forked."""
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    exited: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Resolves to the number of the signal that ended the process; 0 for none."""
    num_tasks: int = 0


class ForkServer:
    """Controls the process from which workers are forked."""

    def __init__(self, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        command = [
            sys.executable,
            "-P",
            "-m",
            "services.verifier.workers.forkserver",
            str(theirs.fileno()),
            str(memory_bytes),
        ]
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
        """Load a reward. Raises `QuestionError` if its import fails, `InfrastructureError` if the fork server fails."""
        if kind in self.kinds:
            return
        answer = await self._ask(Order("load", kind=kind))
        if answer.error:
            raise QuestionError(
                f"Reward {kind!r} cannot be loaded: {answer.error}.", remedy="Fix or uninstall its package."
            )
        self.kinds.add(kind)

    async def fork(self) -> Worker:
        """Fork a worker that has every reward loaded so far."""
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
        """Kill a worker, through the fork server, which knows whether the pid still belongs to it."""
        worker.writer.close()
        if self.alive and not worker.exited.done():
            try:
                self._control.send(msgspec.msgpack.encode(Order("kill", pid=worker.pid)))
            except OSError as error:  # the fork server is gone or stuck, so kill it together with its workers
                log.warning("fork server unresponsive", error=str(error))
                self.process.kill()

    async def close(self) -> None:
        """Kill the fork server and all workers."""
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
                raise InfrastructureError("The verifier's fork server has exited.")
            try:
                socket.send_fds(self._control, [msgspec.msgpack.encode(order)], list(descriptors))
                answer = await asyncio.wait_for(self._answers.get(), LOAD_SECONDS)
            except asyncio.CancelledError:
                self.process.kill()  # otherwise its answer would be mistaken for the next order's
                raise
            except (OSError, TimeoutError) as error:
                self.process.kill()
                raise InfrastructureError(f"The verifier's fork server failed: {error!r}.") from error
        if answer is None:
            raise InfrastructureError("The verifier's fork server has exited.")
        return answer

    async def _listen(self) -> None:
        """Consumes the fork server's answers until it exits."""
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
