"""Bounded concurrency with a way to be alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar

_second_tries: ContextVar[list[None] | None] = ContextVar("second_tries", default=None)


@contextmanager
def one_second_try() -> Iterator[None]:
    """Grant one second try in all to everything that is done within, tasks started within included."""
    token = _second_tries.set([None])
    try:
        yield
    finally:
        _second_tries.reset(token)


class Gate:
    """Lets `size` tasks work at once, first come first served; `alone` waits until none does and keeps others out.

    For work that failed perhaps only because the machine was busy with its neighbours.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._slots = asyncio.Semaphore(size)
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def beside_others(self) -> AsyncIterator[None]:
        async with self._slots:
            yield

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._alone)  # two that each hold half of the slots would wait indefinitely
            for _ in range(self.size):
                await stack.enter_async_context(self._slots)
            yield

    def may_try_again(self) -> bool:
        """Take a second try, if one is left. `alone` keeps everyone waiting, so a group gets no more than one."""
        left = _second_tries.get()
        if left is None:
            return True
        return bool(left) and left.pop() is None
