"""Depth and age of every run's queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from redis.asyncio import Redis

from services.contracts import streams
from services.contracts.records import QueueState

STREAMS = {
    "prompts": streams.prompts,
    "completions": streams.completions,
    "scored": streams.scored,
    "evaluated": streams.evaluated,
    "dead": streams.dead,
}

_LOOK = """
local found = {redis.call('TIME')}
for i, key in ipairs(KEYS) do
  local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  local added = 0
  if first and string.find(key, ':dead$') then
    local about = redis.call('XINFO', 'STREAM', key)
    for j = 1, #about, 2 do if about[j] == 'entries-added' then added = about[j + 1] end end
  end
  found[i + 1] = {redis.call('XLEN', key), first and first[1] or '', added}
end
return found
"""
"""Returns the first message's id alone: its body, a group of long responses, may have a megabyte."""


async def queue_states(redis: Redis, run_ids: Sequence[str]) -> list[QueueState]:
    """All queues of the given runs, in one round trip to Redis."""
    names = [(run_id, stream) for run_id in run_ids for stream in STREAMS]
    if not names:
        return []
    keys = [STREAMS[stream](run_id) for run_id, stream in names]
    (seconds, microseconds), *found = await cast(Any, redis.eval_ro(_LOOK, len(keys), *keys))
    now = int(seconds) + int(microseconds) / 1e6
    return [
        QueueState(
            run_id=run_id,
            stream=stream,
            depth=depth,
            oldest_seconds=_age(first, now),
            removed=max(0, added - depth) if stream == "dead" else 0,
        )
        for (run_id, stream), (depth, first, added) in zip(names, found, strict=True)
    ]


def _age(message_id: bytes, now: float) -> float:
    return max(0.0, now - int(message_id.partition(b"-")[0]) / 1000) if message_id else 0.0
