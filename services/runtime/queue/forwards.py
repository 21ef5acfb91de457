"""Publish-and-acknowledge: forwards that are ready together share a round trip, and thus one sync of the server's file.

The sync is the most expensive part of a round trip, whether for eight messages or one. No message waits for others:
those that arrive during a round trip go with the next one. The server runs a round trip's script completely or, if it
dies before the sync, not at all.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis

MAX_ROUND_BYTES = 1 << 20
"""A round of this size accepts no more messages, because a running script blocks the server."""

_FORWARD = """
local taken = {}
for i = 2, #ARGV, 2 do
  local one = redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  if one == 1 then
    redis.call('XDEL', KEYS[1], ARGV[i])
    redis.call('XADD', KEYS[2], '*', 'm', ARGV[i + 1])
  end
  taken[i / 2] = one
end
return taken
"""


@dataclass(slots=True)
class _Round:
    """The forwards of one round trip. Accepts more until it is sent."""

    entries: list[tuple[str, bytes] | None] = field(default_factory=list)
    """Message id and successor; None if the caller was cancelled before it was sent."""
    has_set_out: bool = False
    num_bytes: int = 0
    num_waiting: int = 0
    trip: asyncio.Task[list[bool]] = field(init=False)


class Forwards:
    """The forwards of one consumer group. There is one round trip at a time between two streams, so that successors
    appear in the order of the calls."""

    def __init__(self, redis: Redis, group: str) -> None:
        self._redis = redis
        self._group = group
        self._open: dict[tuple[str, str], _Round] = {}
        self._last: dict[tuple[str, str], _Round] = {}

    async def forward(self, source: str, message_id: str, target: str, payload: bytes) -> bool:
        """Acknowledge and delete the message, and publish its successor. Returns False, without publishing, if it was
        acknowledged before.

        A cancelled caller does not affect the others: its message is left out if the round trip has not begun, and a
        round trip for which no caller waits is abandoned. A `RedisError` is raised to all callers of a round.
        """
        streams = source, target
        round_ = self._open.get(streams)
        if round_ is None or round_.num_bytes >= MAX_ROUND_BYTES:
            round_ = self._start(streams)
        place = len(round_.entries)
        round_.entries.append((message_id, payload))
        round_.num_bytes += len(payload)
        round_.num_waiting += 1
        try:
            taken = await asyncio.shield(round_.trip)
        except asyncio.CancelledError:
            round_.entries[place] = None
            if round_.num_waiting == 1 and round_.has_set_out:
                round_.trip.cancel()
            raise
        finally:
            round_.num_waiting -= 1
        return taken[place]

    def _start(self, streams: tuple[str, str]) -> _Round:
        before = self._last.get(streams)
        round_ = self._open[streams] = self._last[streams] = _Round()
        round_.trip = asyncio.create_task(self._go(streams, round_, before))
        return round_

    async def _go(self, streams: tuple[str, str], round_: _Round, before: _Round | None) -> list[bool]:
        """Wait for the previous round, then send this one with everything that it has by then."""
        try:
            if before is not None:
                await asyncio.wait([before.trip])
            round_.has_set_out = True
            if self._open.get(streams) is round_:
                del self._open[streams]
            sent = [(place, entry) for place, entry in enumerate(round_.entries) if entry is not None]
            taken = [False] * len(round_.entries)
            if not sent:
                return taken
            arguments = [part for _, entry in sent for part in entry]
            reply = await cast(Any, self._redis.eval(_FORWARD, 2, *streams, self._group, *arguments))
            for (place, _), one in zip(sent, reply, strict=True):
                taken[place] = bool(one)
            return taken
        finally:
            if self._last.get(streams) is round_:
                del self._last[streams]
