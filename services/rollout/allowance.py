"""How long an engine may work for evaluations and served requests alongside a training run on the same processor.

An engine on a GPU of its own slows nothing else down. On a CPU, the learner and all engines compete for the cores, and
an engine slows the others down even at the lowest priority (docs/performance.md). Alongside a run, such work therefore
gets an eighth of the time. Unused time is saved, up to two seconds, so that a conversation seldom waits. Work in
progress is never interrupted; if it takes longer than the allowance, the next work waits for the difference.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from services.runtime.logs import get_logger
from services.runtime.training import is_training

log = get_logger(__name__)
PART = 0.125
"""Of the time."""
SAVED_SECONDS = 2.0
REOPENS_AT_SECONDS = 0.25
"""Work starts again with this much saved, since an engine works best with many sequences at once."""
LOOK_SECONDS = 2.0
TICK_SECONDS = 0.05


class Allowance:
    """The seconds that an engine may work for others. Unlimited unless a run trains on the same processor."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_limited = False
        self._clock = clock
        self._saved = SAVED_SECONDS
        self._at = clock()
        self._is_open = True
        self._num_working = 0

    @property
    def is_open(self) -> bool:
        """Whether more work may begin."""
        self._count()
        if self._saved <= 0.0:
            self._is_open = False
        elif self._saved >= REOPENS_AT_SECONDS:
            self._is_open = True
        return self._is_open or not self.is_limited

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the block's time. Blocks at the same time share an engine's work, so that it is counted once."""
        self._count()
        self._num_working += 1
        try:
            yield
        finally:
            self._count()
            self._num_working -= 1

    async def until_open(self) -> None:
        while not self.is_open:
            await asyncio.sleep(TICK_SECONDS)

    def _count(self) -> None:
        now = self._clock()
        passed, self._at = now - self._at, now
        used = passed if self._num_working else 0.0
        self._saved = min(self._saved + passed * PART - used, SAVED_SECONDS) if self.is_limited else SAVED_SECONDS

    async def follow(self, redis: Redis, machine: str) -> None:
        """Limit it while a run trains on `machine`, until cancelled."""
        has_complained = False
        while True:
            try:
                self.is_limited = await is_training(redis, machine)
            except NoPermissionError as error:
                if not has_complained:
                    log.warning(
                        "other work is not limited: the queue server has the users' rules of an older release. Run "
                        "`turnout down` and `turnout up`; with Compose, restart valkey",
                        error=str(error),
                    )
                has_complained = True
            except RedisError:
                pass  # as before, until the queue server answers again
            await asyncio.sleep(LOOK_SECONDS)
