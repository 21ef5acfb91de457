"""Dead letters: messages that no service could read or process, with the reason, on `<prefix>:dead`.

They are for operators, and for the learner, which finds out what happened to a group. The stream is bounded, since its
content may be hostile: the oldest letters are deleted first, and the server counts how many there have been.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.contracts import codec, streams
from services.contracts.errors import MalformedMessageError
from services.contracts.events import Note
from services.contracts.messages import DeadLetter
from services.runtime.logs import get_logger

MAX_LETTERS = 1000
MAX_BYTES = 64 << 20
"""Total size of all letters on a stream."""
MAX_PAYLOAD_BYTES = 4 << 20
"""Number of bytes of a message that a letter keeps."""
NOTE_SECONDS = 60.0
"""Shortest time between two notes about letters of a stream."""
ENTRIES_A_CALL = 16
log = get_logger(__name__)

# An entry's fields: m the letter, g its group, f whether it is fatal, s the bytes of all letters up to this one.
_BURY = """
local function field(entry, name)
  for i = 1, #entry[2], 2 do if entry[2][i] == name then return entry[2][i + 1] end end
  return ''
end
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local sum = (newest and tonumber(field(newest, 's')) or 0) + #ARGV[3]
redis.call('XADD', KEYS[2], '*', 'm', ARGV[3], 'g', ARGV[4], 'f', ARGV[5], 's', string.format('%.0f', sum))
while true do
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  local before = (tonumber(field(oldest, 's')) or 0) - #field(oldest, 'm')
  if redis.call('XLEN', KEYS[2]) <= tonumber(ARGV[6]) and sum - before <= tonumber(ARGV[7]) then return 1 end
  redis.call('XDEL', KEYS[2], oldest[1])
end
"""


class DeadLetters:
    """Writes the dead letters of one consumer."""

    def __init__(self, redis: Redis, group: str, consumer: str) -> None:
        self._redis = redis
        self._group = group
        self._consumer = consumer
        self.num_buried = 0
        self._noted: dict[str, float] = {}
        self._num_unnoted = 0

    async def bury(self, stream: str, message_id: str, payload: bytes, reason: str, *, fatal: bool = False) -> bool:
        """Move a message here and acknowledge it atomically. Returns False if it was acknowledged before.

        `fatal` means that it crashed the services that held it, so its group must not be fed again.
        """
        group = codec.group_of(payload) or ""
        if len(payload) > MAX_PAYLOAD_BYTES:
            reason += f" (The first {MAX_PAYLOAD_BYTES} of {len(payload)} bytes are kept.)"
            payload = payload[:MAX_PAYLOAD_BYTES]
        letter = DeadLetter(stream=stream, message_id=message_id, reason=reason, payload=payload, at=time.time())
        target = stream.rsplit(":", 1)[0] + ":dead"
        arguments: list[Any] = [
            self._group,
            message_id,
            codec.encode(letter),
            group[:500],
            int(fatal),
            MAX_LETTERS,
            MAX_BYTES,
        ]
        if not await cast(Any, self._redis.eval(_BURY, 2, stream, target, *arguments)):
            return False
        self.num_buried += 1
        log.warning("dead letter", stream=stream, message_id=message_id, group_id=group, reason=reason)
        await self._note(stream, group, reason)
        return True

    async def _note(self, stream: str, group: str, reason: str) -> None:
        """Add a note to the run's events, at a limited rate, so that a flooded stream does not flood the events."""
        run_id, now = streams.run_of(stream), time.monotonic()
        if run_id is None or now - self._noted.get(stream, -NOTE_SECONDS) < NOTE_SECONDS:
            self._num_unnoted += 1
            return
        self._noted = {name: at for name, at in self._noted.items() if now - at < NOTE_SECONDS} | {stream: now}
        what, others = group or "a message", f" ({self._num_unnoted} more before it)" if self._num_unnoted else ""
        text = f"Dead letter: {what} on {stream.rpartition(':')[2]}{others}: {reason}"[:4000]
        self._num_unnoted = 0
        note = Note(run_id=run_id, at=time.time(), level="warning", source=self._consumer, text=text)
        try:
            await self._redis.xadd(streams.EVENTS, {b"m": codec.encode(note)})
        except RedisError as error:
            log.warning("event lost", error=str(error))


@dataclass(frozen=True, slots=True)
class Buried:
    """What a letter says about a group."""

    reason: str
    fatal: bool


async def buried_groups(redis: Redis, run_id: str) -> dict[str, Buried]:
    """The newest letter of each group that has one, preferring fatal letters."""
    found: dict[str, Buried] = {}
    start = "-"
    while entries := cast(list[Any], await redis.xrange(streams.dead(run_id), min=start, count=ENTRIES_A_CALL)):
        for _, fields in entries:
            group, fatal = fields.get(b"g", b"").decode(), fields.get(b"f") == b"1"
            if group and (fatal or group not in found or not found[group].fatal):
                found[group] = Buried(_reason(fields.get(b"m", b"")), fatal)
        start = "(" + entries[-1][0].decode()
    return found


def _reason(payload: bytes) -> str:
    try:
        return codec.decode(payload, DeadLetter).reason
    except MalformedMessageError as error:
        return error.message
