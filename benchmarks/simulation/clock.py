"""A virtual clock for real asynchronous code that speaks to a real Redis server.

`VirtualLoop` is an event loop whose time stands still while anything can run or a reply of the server is awaited, and
jumps to the next timer otherwise. So the services' own loops, with their own timers, play hours of ring time in
minutes. `VirtualRedis` tells the loop of awaited replies, and does the waiting of blocking reads on this side: a
read that finds nothing waits, in virtual time, until a write of this process reaches the stream. As in the server,
waiting readers of a stream are served in the order in which they came.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

T = TypeVar("T")
PATIENCE_SECONDS = 0.5
"""Real time without a sign of the server after which virtual time continues anyway, as during a reconnect."""
NUDGE_SECONDS = 0.01


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, which starts at 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self.awaited = 0
        """Number of the server's replies that are being waited for."""
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


class _Selector(selectors.EpollSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        loop = self._loop
        if loop.awaited or timeout is None:
            found = super().select(PATIENCE_SECONDS)
            if not found and timeout is not None:
                loop.now += min(timeout, NUDGE_SECONDS)
            return found
        found = super().select(0)
        if not found:
            loop.now += timeout
        return found


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a virtual clock to its end."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class _Awaited:
    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.awaited += 1  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        self._loop.awaited -= 1  # type: ignore[attr-defined]


class VirtualRedis(Redis):
    """A client whose blocking reads wait on the virtual clock. All writers of a stream must be in this process."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._readers: dict[str, deque[asyncio.Future[None]]] = {}
        self._num_writes: dict[str, int] = {}

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        with _Awaited():
            reply = await super().execute_command(*arguments, **options)
        if arguments[0] == "XADD":
            self._wrote(_text(arguments[1]))
        elif arguments[0] in ("EVALSHA", "EVAL"):
            for key in arguments[3 : 3 + int(arguments[2])]:
                self._wrote(_text(key))
        return reply

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        return _VirtualPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    async def xreadgroup(self, *arguments: Any, block: int | None = None, **named: Any) -> Any:
        streams: dict[str, str] = arguments[2]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (block or 0) / 1000
        while True:
            seen = self._writes(streams)
            reply = await super().xreadgroup(*arguments, **named)
            if reply:
                for stream in streams:
                    self._wake(stream)  # there may be more, for the next in the row
                return reply
            if seen != self._writes(streams):
                continue
            if loop.time() >= deadline or not await self._written(list(streams), deadline):
                return reply

    async def _written(self, streams: list[str], deadline: float) -> bool:
        """Wait for a write to one of the streams. False where the deadline came first."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        rows = [self._readers.setdefault(stream, deque()) for stream in streams]
        for row in rows:
            row.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
            return True
        except TimeoutError:
            return False
        finally:
            for row in rows:
                if waiter in row:
                    row.remove(waiter)

    def _writes(self, streams: dict[str, str]) -> int:
        return sum(self._num_writes.get(stream, 0) for stream in streams)

    def _wrote(self, stream: str) -> None:
        self._num_writes[stream] = self._num_writes.get(stream, 0) + 1
        self._wake(stream)

    def _wake(self, stream: str) -> None:
        row = self._readers.get(stream)
        while row:
            waiter = row.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class _VirtualPipeline(Pipeline):
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        with _Awaited():
            return await super().execute(raise_on_error)


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key
