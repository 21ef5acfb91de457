"""On which machines a run trains now, for rollout servers that do other work on the same processor.

The API writes it from the learners' heartbeats, which rollout servers may not read.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio import Redis

from services.contracts import streams
from services.contracts.heartbeat import HEARTBEAT_EXPIRES_SECONDS, MACHINE, WAITS_FOR_RESUME, ServiceRecord
from services.runtime.connection import as_text


async def publish_training(redis: Redis, services: Iterable[ServiceRecord]) -> None:
    """Name the machines of the learners that have a run which is not paused. Raises `RedisError`."""
    machines = {
        record.details[MACHINE]
        for record in services
        if record.kind == "learner" and record.run_id is not None and record.waiting_for != WAITS_FOR_RESUME
        if MACHINE in record.details
    }
    await redis.set(streams.TRAINING, " ".join(sorted(machines)), ex=int(HEARTBEAT_EXPIRES_SECONDS))


async def is_training(redis: Redis, machine: str) -> bool:
    """Whether a run trains on `machine`. Raises `RedisError`."""
    return machine in as_text(await redis.get(streams.TRAINING) or b"").split()
