"""Who is alive, for those who draw conclusions from an absence."""

from __future__ import annotations

import time
from collections.abc import Callable

from redis.asyncio import Redis

from services.contracts import streams
from services.contracts.heartbeat import HEARTBEAT_EXPIRES_SECONDS, ServiceRecord
from services.runtime.presence import list_services

GAP_SECONDS = HEARTBEAT_EXPIRES_SECONDS / 2
"""Heartbeats survive a shorter time without the queue server."""


class RollCall:
    """Reads the heartbeats; knows when it is too early to call anybody missing.

    While the queue server is away nobody can write a heartbeat, and those it holds run out. So after a gap between two
    looks, services get as long as a heartbeat lasts to be heard again.
    """

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.monotonic) -> None:
        self.redis = redis
        self._clock = clock
        self._looked_at: float | None = None
        self._unsure_until = 0.0

    async def take(self) -> list[ServiceRecord] | None:
        """All instances that are alive; None where an absence means nothing yet.

        Raises `RedisError` where the queue server does not serve, see `is_outage`.
        """
        # First a write of ours: a server that takes none (its disk or memory is full) takes no heartbeats either.
        await self.redis.set(streams.ROLL_CALL, "", ex=int(HEARTBEAT_EXPIRES_SECONDS))
        services = await list_services(self.redis)
        now, before = self._clock(), self._looked_at
        self._looked_at = now
        if before is not None and now - before > GAP_SECONDS:
            self._unsure_until = now + HEARTBEAT_EXPIRES_SECONDS
        return None if now < self._unsure_until else services
