"""Bounded concurrency with a way to be alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager


class Gate:
    """Lets `size` tasks work at once, first come first served; `alone` waits until nobody does and keeps others out.

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
            await stack.enter_async_context(self._alone)  # two that each hold half of the slots would wait for ever
            for _ in range(self.size):
                await stack.enter_async_context(self._slots)
            yield
