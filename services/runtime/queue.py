"""Redis Streams as queues: consumer groups, atomic publish-and-acknowledge, reclaim, dead letters.

The rules that make "nothing lost, nothing twice" true:

- A message is acknowledged only together with the publishing of its successor (`forward`), in one Lua script that
  publishes only if the acknowledgement took. Of two workers that hold the same message, one publishes. Forwards that
  are ready together share a round trip (`forwards.py`).
- A worker that dies leaves its messages pending; another takes them over once they have been idle (`reclaim`). A worker
  that is slow but alive keeps them with `touch`; one that leaves in order gives them up at once with `hand_back`.
- Bytes that cannot be read go to the dead-letter stream with the reason, and are acknowledged in the same script; so do
  messages of another run than their stream's, which would be published where they do not belong.
- Acknowledged messages are deleted, so a stream holds exactly what is not yet handled.
- Feeding (`feed`) moves the feeder's cursor and publishes in one script that runs only if the cursor stands where the
  caller believes, so a retried or repeated call feeds nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.contracts import codec, streams
from services.contracts.errors import MalformedMessageError
from services.contracts.messages import DeadLetter
from services.runtime.forwards import Forwards
from services.runtime.logs import get_logger

M = TypeVar("M", bound=msgspec.Struct)
BODY = b"m"
HANDED_BACK_SECONDS = 86_400.0
"""Idle time of a message that was handed back: longer than anybody waits before it reclaims."""
REPLICAS_SECONDS = 2.0
log = get_logger(__name__)

_FEED = """
local at = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
if at ~= tonumber(ARGV[2]) then return at end
for i = 3, #ARGV do redis.call('XADD', KEYS[1], '*', 'm', ARGV[i]) end
redis.call('HSET', KEYS[2], ARGV[1], at + #ARGV - 2)
return at + #ARGV - 2
"""


@dataclass(frozen=True, slots=True)
class Delivery(Generic[M]):
    """A message in hand, with what is needed to acknowledge it. It belongs to this consumer until then."""

    message: M
    stream: str
    message_id: str
    """Redis stream id; ids of one stream grow in publishing order."""


class Queue:
    """One consumer of one consumer group. Cheap; share the client between queues."""

    def __init__(self, redis: Redis, group: str, consumer: str, num_replicas: int = 0) -> None:
        """`num_replicas` must have what is published before `publish` returns."""
        self.redis = redis
        self.group = group
        self.consumer = consumer
        self._num_replicas = num_replicas
        self._known: set[str] = set()
        self._forwards = Forwards(redis, group)

    async def publish(self, stream: str, message: msgspec.Struct) -> str:
        """Append a message that has no predecessor. Returns its stream id. May repeat under a lost connection.

        Replication is one sequence, so a replica that has the message has all that was done before it. Where replicas
        do not confirm within `REPLICAS_SECONDS` it goes on with a warning: the primary has it.
        """
        payload = codec.encode(message)
        if not self._num_replicas:
            return _text(await self.redis.xadd(stream, {BODY: payload}))
        async with self.redis.pipeline(transaction=False) as pipe:  # WAIT speaks of its own connection's writes
            pipe.xadd(stream, {BODY: payload})
            pipe.execute_command("WAIT", self._num_replicas, int(REPLICAS_SECONDS * 1000))
            message_id, confirmed = await pipe.execute()
        if confirmed < self._num_replicas:
            log.warning("not on every replica", stream=stream, confirmed=confirmed, wanted=self._num_replicas)
        return _text(message_id)

    async def receive(
        self, streams: Sequence[str], kind: type[M], *, count: int = 1, block_seconds: float = 1.0
    ) -> list[Delivery[M]]:
        """Up to `count` new messages a stream; waits up to `block_seconds` for the first one, then gives an empty list.

        Unreadable messages are moved to the dead letters and do not appear.
        """
        if not streams:
            return []
        for stream in streams:
            await self._ensure_group(stream)
        try:
            reply = await self.redis.xreadgroup(
                self.group,
                self.consumer,
                dict.fromkeys(streams, ">"),
                count=count,
                block=max(1, int(block_seconds * 1000)),
            )
        except ResponseError as error:
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):  # the latter: it was demoted to a replica
                raise
            self._known.clear()
            return []
        deliveries: list[Delivery[M]] = []
        for stream, entries in _pairs(reply):
            deliveries += await self._read(_text(stream), entries, kind)
        return deliveries

    async def own_pending(self, stream: str, kind: type[M], *, count: int = 1000) -> list[Delivery[M]]:
        """All messages this consumer took and did not acknowledge, oldest first: what to replay after a crash."""
        await self._ensure_group(stream)
        deliveries: list[Delivery[M]] = []
        last = "0"
        while True:
            try:
                reply = await self.redis.xreadgroup(self.group, self.consumer, {stream: last}, count=count)
            except ResponseError as error:
                self._forget(stream, error)
                return deliveries
            entries = [entry for _, found in _pairs(reply) for entry in found]
            if not entries:
                return deliveries
            last = _text(entries[-1][0])
            deliveries += await self._read(stream, entries, kind)

    async def missed(self, stream: str, kind: type[M], in_hand: Collection[str]) -> list[Delivery[M]]:
        """What this consumer was given in an answer that a broken connection lost; the call that was then made again
        gets newer messages. For consumers that nobody reclaims from. `in_hand`: ids of what it has, unacknowledged."""
        await self._ensure_group(stream)
        count = len(in_hand) + 1  # one that is missed is among so many
        try:
            found: Any = await self.redis.xpending_range(stream, self.group, "-", "+", count, self.consumer)
            ids = [entry["message_id"] for entry in found if _text(entry["message_id"]) not in in_hand]
            entries: Any = await self.redis.xclaim(stream, self.group, self.consumer, 0, ids) if ids else []
        except ResponseError as error:
            self._forget(stream, error)
            return []
        return await self._read(stream, entries, kind)

    async def reclaim(self, stream: str, kind: type[M], *, idle_seconds: float, count: int = 16) -> list[Delivery[M]]:
        """Take over messages that some consumer has held without a sign of life for `idle_seconds`.

        Not XAUTOCLAIM: from the start, that looks at ten times `count` messages only, and finds nothing behind so many
        in living hands.
        """
        await self._ensure_group(stream)
        idle = int(idle_seconds * 1000)
        try:
            found: Any = await self.redis.xpending_range(stream, self.group, "-", "+", count, idle=idle)
            ids = [entry["message_id"] for entry in found]
            if not ids:
                return []
            entries: Any = await self.redis.xclaim(stream, self.group, self.consumer, idle, ids)
        except ResponseError as error:
            self._forget(stream, error)
            return []
        return await self._read(stream, entries, kind)

    async def touch(self, deliveries: Sequence[Delivery[Any]]) -> None:
        """Say that these messages are still being worked on, so that nobody reclaims them."""
        await self._set_idle(deliveries, 0.0)

    async def hand_back(self, deliveries: Sequence[Delivery[Any]]) -> None:
        """Give up messages without acknowledging them: whoever reclaims next gets them, however long it waits for."""
        await self._set_idle(deliveries, HANDED_BACK_SECONDS)

    async def _set_idle(self, deliveries: Sequence[Delivery[Any]], seconds: float) -> None:
        """Set the time since the messages' last sign of life, by the server's clock."""
        for stream, ids in _ids_by_stream(deliveries).items():
            try:
                await self.redis.xclaim(
                    stream,
                    self.group,
                    self.consumer,
                    min_idle_time=0,
                    message_ids=cast(Any, ids),
                    idle=int(seconds * 1000),
                    justid=True,
                )
            except ResponseError as error:
                self._forget(stream, error)

    async def forward(self, delivery: Delivery[Any], stream: str, message: msgspec.Struct) -> bool:
        """Publish the successor and acknowledge, atomically. False where another consumer has done it already."""
        return await self._forwards.forward(delivery.stream, delivery.message_id, stream, codec.encode(message))

    async def acknowledge(self, deliveries: Sequence[Delivery[Any]]) -> None:
        """Acknowledge and delete messages that have no successor. Repeating it changes nothing."""
        for stream, ids in _ids_by_stream(deliveries).items():
            async with self.redis.pipeline(transaction=True) as pipe:
                pipe.xack(stream, self.group, *ids)
                pipe.xdel(stream, *ids)
                await pipe.execute()

    async def dead_letter(self, stream: str, message_id: str, payload: bytes, reason: str) -> None:
        """Move one message to the dead letters beside its stream (`<prefix>:dead`), with the reason."""
        letter = DeadLetter(stream=stream, message_id=message_id, reason=reason, payload=payload, at=time.time())
        target = stream.rsplit(":", 1)[0] + ":dead"
        await self._forwards.forward(stream, message_id, target, codec.encode(letter))

    async def feed(
        self, stream: str, cursor_key: str, field: str, expected: int, messages: Sequence[msgspec.Struct]
    ) -> int:
        """Publish messages number `expected`, `expected` + 1, ... and move the cursor, only if it stands at `expected`.

        Returns where the cursor stands afterwards; equal to `expected + len(messages)` also where an earlier, lost
        reply had already fed them.
        """
        payloads = [codec.encode(message) for message in messages]
        # By its text: a server that has just started again knows no script by its hash, and may start again between the
        # loading of a script and its call.
        return int(await cast(Any, self.redis.eval(_FEED, 2, stream, cursor_key, field, expected, *payloads)))

    def _forget(self, stream: str, error: ResponseError) -> None:
        """A stream deleted under us (its run was deleted) has no messages. Raises `error` where it is another one."""
        if "NOGROUP" not in str(error):
            raise error
        self._known.discard(stream)

    async def _ensure_group(self, stream: str) -> None:
        if stream in self._known:
            return
        try:
            await self.redis.xgroup_create(stream, self.group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._known.add(stream)

    async def _read(self, stream: str, entries: Sequence[Any], kind: type[M]) -> list[Delivery[M]]:
        deliveries: list[Delivery[M]] = []
        for raw_id, fields in entries:
            message_id = _text(raw_id)
            if fields is None:  # deleted while pending: somebody else acknowledged it
                await self.redis.xack(stream, self.group, message_id)
                continue
            payload = fields.get(BODY, b"")
            try:
                message = codec.decode(payload, kind)
                _check_run(message, stream)
            except MalformedMessageError as error:
                await self.dead_letter(stream, message_id, payload, error.message)
                continue
            deliveries.append(Delivery(message, stream, message_id))
        return deliveries


def _check_run(message: msgspec.Struct, stream: str) -> None:
    """Raise `MalformedMessageError` where a message on a run's stream is of another run."""
    run_id, said = streams.run_of(stream), getattr(message, "run_id", None)
    if run_id is not None and said is not None and said != run_id:
        raise MalformedMessageError(f"message of run {str(said)[:100]!r} on a stream of run {run_id!r}.")


def _ids_by_stream(deliveries: Sequence[Delivery[Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for delivery in deliveries:
        found.setdefault(delivery.stream, []).append(delivery.message_id)
    return found


def _pairs(reply: Any) -> list[tuple[Any, list[Any]]]:
    """XREADGROUP's reply as (stream, entries) pairs, for either protocol version."""
    if not reply:
        return []
    if isinstance(reply, dict):
        return [
            (stream, found[0] if found and isinstance(found[0], list) else found) for stream, found in reply.items()
        ]
    return [(stream, entries) for stream, entries in reply]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
