"""Which services are alive, and whether a missing heartbeat means anything yet."""

from __future__ import annotations

import time
from collections.abc import Callable

from redis.asyncio import Redis

from services.contracts import streams
from services.contracts.heartbeat import HEARTBEAT_EXPIRES_SECONDS, ServiceRecord
from services.runtime.presence import list_services

GAP_SECONDS = HEARTBEAT_EXPIRES_SECONDS / 2
"""A queue-server outage shorter than this lets no heartbeat expire."""


class RollCall:
    """Reads the heartbeats, and knows when it is too early to call a service missing.

    While the queue server is unavailable, services cannot write heartbeats and those that it holds expire. So after a
    gap between two reads, services get one heartbeat's lifetime to report again.
    """

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self.redis = redis
        self._clock = clock
        self._looked_at: float | None = None
        self._unsure_until = 0.0

    async def take(self) -> list[ServiceRecord] | None:
        """All live instances; None while a missing one means nothing yet.

        Raises `RedisError` if the queue server is not serving; see `is_outage`.
        """
        # Write first: a queue server that rejects this (its disk or memory is full) rejects heartbeats too.
        await self.redis.set(streams.ROLL_CALL, "", ex=int(HEARTBEAT_EXPIRES_SECONDS))
        services = await list_services(self.redis)
        now, before = self._clock(), self._looked_at
        self._looked_at = now
        if before is not None and now - before > GAP_SECONDS:
            self._unsure_until = now + HEARTBEAT_EXPIRES_SECONDS
        return None if now < self._unsure_until else services
