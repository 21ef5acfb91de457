"""Depth and age of every run's queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from redis.asyncio import Redis

from services.contracts import streams

STREAMS = {
    "prompts": streams.prompts,
    "completions": streams.completions,
    "scored": streams.scored,
    "evaluated": streams.evaluated,
    "dead": streams.dead,
}


class QueueState(BaseModel):
    """One stream of one run."""

    run_id: str
    stream: str
    """prompts, completions, scored, evaluated or dead."""
    depth: int
    """Messages not yet acknowledged, waiting or in hand."""
    oldest_seconds: float
    """Age of the oldest of them; 0 for an empty stream."""


async def queue_states(redis: Redis, run_ids: Sequence[str]) -> list[QueueState]:
    """All queues of the given runs, in one round trip to Redis."""
    names = [(run_id, stream) for run_id in run_ids for stream in STREAMS]
    if not names:
        return []
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        for run_id, stream in names:
            key = STREAMS[stream](run_id)
            pipe.xlen(key)
            pipe.xrange(key, count=1)
        replies: list[Any] = await pipe.execute()
    now = replies[0][0] + replies[0][1] / 1e6
    return [
        QueueState(
            run_id=run_id,
            stream=stream,
            depth=int(replies[1 + 2 * index]),
            oldest_seconds=_age(replies[2 + 2 * index], now),
        )
        for index, (run_id, stream) in enumerate(names)
    ]


def _age(entries: list[Any], now: float) -> float:
    if not entries:
        return 0.0
    message_id = entries[0][0]
    text = message_id.decode() if isinstance(message_id, bytes) else str(message_id)
    return float(max(0.0, now - int(text.split("-")[0]) / 1000))
