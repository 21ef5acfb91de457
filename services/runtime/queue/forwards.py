"""Publish-and-acknowledge: those that are ready together share one round trip, and so one sync of the server's file.

The sync costs both sides more than all else of a round trip, for eight messages as for one. No message waits for
company: what comes while a round trip is in flight goes with the next one. The server runs a round trip's script whole
or, if it dies before the sync, not at all.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

from redis.asyncio import Redis

MAX_ROUND_BYTES = 1 << 20
"""A round with so much takes no more: the server does nothing else while it runs a script."""

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
    """The forwards of one round trip. Open to more until it sets out."""

    entries: list[tuple[str, bytes] | None] = field(default_factory=list)
    """Message id and successor; None for one whose caller left before it was sent."""
    has_set_out: bool = False
    num_bytes: int = 0
    num_waiting: int = 0
    trip: asyncio.Task[list[bool]] = field(init=False)


class Forwards:
    """The forwards of one consumer group. From one stream to another there is one round trip at a time, so that
    successors appear in the order of the calls."""

    def __init__(self, redis: Redis, group: str) -> None:
        self._redis = redis
        self._group = group
        self._open: dict[tuple[str, str], _Round] = {}
        self._last: dict[tuple[str, str], _Round] = {}

    async def forward(self, source: str, message_id: str, target: str, payload: bytes) -> bool:
        """Acknowledge and delete the message, and publish its successor. False, and nothing published, where it was
        acknowledged before.

        Who is cancelled leaves the others alone: its message stays out where the round trip has not begun, and one in
        flight that no caller waits for is given up. Raises `RedisError` to all of a round.
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
        """Wait for the round before this one, then send this one as it is by then."""
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
