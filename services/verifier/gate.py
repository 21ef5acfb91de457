"""Bounds concurrency, and lets a task run alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar

_second_tries: ContextVar[list[None] | None] = ContextVar("second_tries", default=None)


@contextmanager
def one_second_try() -> Iterator[None]:
    """Grant a single second try to everything done in this context, including tasks started in it."""
    token = _second_tries.set([None])
    try:
        yield
    finally:
        _second_tries.reset(token)


class Gate:
    """Lets `size` tasks run at once, in order of arrival. `alone` waits until none is running and blocks others.

    A task that may have failed only because others kept the machine busy can so be tried again alone.
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
            await stack.enter_async_context(self._alone)  # two tasks with half of the slots each would deadlock
            for _ in range(self.size):
                await stack.enter_async_context(self._slots)
            yield

    def may_try_again(self) -> bool:
        """Take a second try if one is left. A group gets only one, because `alone` makes every other task wait."""
        left = _second_tries.get()
        if left is None:
            return True
        return bool(left) and left.pop() is None
