"""The part of an engine's sequences that served requests may use, so that training keeps the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.rollout import metrics
from services.rollout.allowance import Allowance

WAITING_PER_SLOT = 4
"""Requests that may wait, for each sequence of the share. More would only time out at their clients."""


class Share:
    """Counts the requests that are admitted, and the sequences that they use, first come, first served."""

    def __init__(self, max_num_seqs: int, share: float, allowance: Allowance) -> None:
        """`max_num_seqs` is the engine's; `share` of them are for served requests, at least one, none if it is 0."""
        self._allowance = allowance
        self.num_slots = max(1, int(max_num_seqs * share)) if share else 0
        self.num_requests = 0
        """Requests that are admitted and not answered completely."""
        self._free = asyncio.Semaphore(self.num_slots)
        self._turn = asyncio.Lock()
        """Makes one request at a time collect slots: two that need several could otherwise each hold half of them."""

    @property
    def is_full(self) -> bool:
        return self.num_requests >= self.num_slots * (1 + WAITING_PER_SLOT)

    @asynccontextmanager
    async def slots(self, count: int) -> AsyncIterator[None]:
        """Wait for the allowance and for `count` sequences, at most `num_slots`; hold them for the block."""
        taken = 0
        try:
            with metrics.SERVED_WAITING.track_inprogress():
                async with self._turn:
                    for _ in range(count):
                        await self._free.acquire()
                        taken += 1
                    await self._allowance.until_open()
            with metrics.SERVED_RUNNING.track_inprogress(), self._allowance.working():
                yield
        finally:
            for _ in range(taken):
                self._free.release()
