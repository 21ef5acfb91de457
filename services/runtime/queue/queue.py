"""Queues on Redis Streams: consumer groups, atomic publish-and-acknowledge, reclaim, dead letters.

The rules that guarantee "nothing lost, nothing twice":

- A message is acknowledged only together with publishing its successor (`forward`), in a Lua script that publishes only
  if the acknowledgement succeeded. If two workers hold the same message, only one publishes. Forwards that are ready
  together share a round trip (`forwards.py`).
- A worker that dies leaves its messages pending, and another takes them over once they have been idle (`take_over`). A
  slow worker keeps them with `touch`; a worker that shuts down cleanly releases them immediately with `hand_back`.
- A message that crashes the service that holds it is not redelivered indefinitely. The server counts deliveries; a
  clean shutdown, or a holder that was only slow, does not count. A message that came back twice is a `Suspect`: a
  worker takes it alone, so that messages that were merely held together with the culprit are cleared. After
  `MAX_DELIVERIES` it becomes a dead letter.
- Unreadable bytes go to the dead-letter stream with the reason, and are acknowledged in the same script
  (`dead_letters.py`). So do messages of another run than their stream's, and those that `border` rejects.
- Acknowledged messages are deleted, so a stream contains exactly what is not yet processed.
- Feeding (`feed`) moves the feeder's cursor and publishes in one script, which runs only if the cursor has the value
  that the caller expects. A retried or repeated call therefore feeds nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.contracts import codec, streams
from services.contracts.errors import MalformedMessageError
from services.runtime.connection import as_text
from services.runtime.dead_letters import DeadLetters
from services.runtime.logs import get_logger
from services.runtime.queue.forwards import Forwards

M = TypeVar("M", bound=msgspec.Struct)
BODY = b"m"
HANDED_BACK_SECONDS = 86_400.0
"""Idle time set for a message that is handed back: longer than any consumer waits before it reclaims."""
REPLICAS_SECONDS = 2.0
MAX_DELIVERIES = 5
"""Number of deliveries of a message whose holders die."""
MAX_TOGETHER = 2
"""Number of these deliveries in which it may be held together with others."""
MAX_LOOK = 1000
"""Number of pending messages read in one call."""
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
    """A message with what is needed to acknowledge it. It belongs to this consumer until then."""

    message: M
    stream: str
    message_id: str
    """Redis stream id; ids of one stream grow in publishing order."""
    times: int = 1
    """Number of deliveries, including this one, but without those whose holder shut down cleanly."""

    @property
    def is_suspect(self) -> bool:
        """Whether its holders died more than once, so that it must be processed alone."""
        return self.times > MAX_TOGETHER


@dataclass(frozen=True, slots=True)
class Suspect:
    """A message that is reserved for this consumer but not delivered yet: call `Queue.open` once nothing else is held,
    and `touch` until then."""

    stream: str
    message_id: str
    times: int
    """Number of deliveries so far."""


Held = Delivery[Any] | Suspect


@dataclass(frozen=True, slots=True)
class Found(Generic[M]):
    """Messages taken over from other consumers."""

    deliveries: list[Delivery[M]]
    suspect: Suspect | None
    """At most one at a time. Take nothing else until it is opened and processed."""


class Queue:
    """One consumer of one consumer group. Cheap; share the client between queues."""

    def __init__(self, redis: Redis, group: str, consumer: str, num_replicas: int = 0) -> None:
        """`publish` waits until `num_replicas` replicas have the message."""
        self.redis = redis
        self.group = group
        self.consumer = consumer
        self._num_replicas = num_replicas
        self._known: set[str] = set()
        self._forwards = Forwards(redis, group)
        self._dead_letters = DeadLetters(redis, group, consumer)
        self.border: Callable[[Any, str], None] = _admit_all
        """Called with a message and its stream. Raises `MalformedMessageError` for a message that this consumer cannot
        process, which then becomes a dead letter."""

    @property
    def num_dead_letters(self) -> int:
        """Number of messages that this consumer has turned into dead letters."""
        return self._dead_letters.num_buried

    async def publish(self, stream: str, message: msgspec.Struct) -> str:
        """Append a message that has no predecessor. Returns its stream id. A lost connection may publish it twice.

        Replication is ordered, so a replica that has the message has everything before it. If replicas do not confirm
        within `REPLICAS_SECONDS`, logs a warning and continues, since the primary has it.
        """
        return as_text(await self._replicated(stream, "XADD", stream, "*", BODY, codec.encode(message)))

    async def write_field(self, key: str, name: str, value: str) -> None:
        """Set a field of a hash, and wait for replicas as `publish` does."""
        await self._replicated(key, "HSET", key, name, value)

    async def _replicated(self, key: str, *command: Any) -> Any:
        """The reply to a command that writes `key`, once replicas have it."""
        if not self._num_replicas:
            return await cast(Any, self.redis).execute_command(*command)
        async with self.redis.pipeline(transaction=False) as pipe:  # WAIT covers the writes of its own connection
            pipe.execute_command(*command)
            pipe.execute_command("WAIT", self._num_replicas, int(REPLICAS_SECONDS * 1000))
            reply, confirmed = await pipe.execute()
        if confirmed < self._num_replicas:
            log.warning("not written to every replica", key=key, confirmed=confirmed, wanted=self._num_replicas)
        return reply

    async def receive(
        self, streams: Sequence[str], kind: type[M], *, count: int = 1, block_seconds: float = 1.0
    ) -> list[Delivery[M]]:
        """Up to `count` undelivered messages per stream. Waits up to `block_seconds` for the first one, then returns an
        empty list.

        Unreadable messages are moved to the dead letters and not returned.
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
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):  # else: demoted to a replica
                raise
            self._known.clear()
            return []
        deliveries: list[Delivery[M]] = []
        for stream, entries in _pairs(reply):
            deliveries += await self._read(as_text(stream), entries, kind)
        return deliveries

    async def own_pending(self, stream: str, kind: type[M], *, count: int = 1000) -> list[Delivery[M]]:
        """All messages that this consumer took but did not acknowledge, oldest first, to replay after a crash."""
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
            last = as_text(entries[-1][0])
            deliveries += await self._read(stream, entries, kind)

    async def missed(self, stream: str, kind: type[M], in_hand: Collection[str]) -> list[Delivery[M]]:
        """Messages delivered to this consumer in a reply that was lost with a broken connection, as the repeated call
        gets newer messages. For consumers without reclaiming peers. `in_hand` are the ids of its unacknowledged
        messages."""
        await self._ensure_group(stream)
        count = len(in_hand) + 1  # a missed one is among this many
        try:
            found: Any = await self.redis.xpending_range(stream, self.group, "-", "+", count, self.consumer)
            ids = [entry["message_id"] for entry in found if as_text(entry["message_id"]) not in in_hand]
            entries: Any = await self.redis.xclaim(stream, self.group, self.consumer, 0, ids) if ids else []
        except ResponseError as error:
            self._forget(stream, error)
            return []
        return await self._read(stream, entries, kind)

    async def reclaim(self, stream: str, kind: type[M], *, idle_seconds: float, count: int = 16) -> list[Delivery[M]]:
        """Take over messages that a consumer has not touched for `idle_seconds`, however often they were delivered: for
        messages that must not be given up."""
        await self._ensure_group(stream)
        idle = int(idle_seconds * 1000)
        return await self._claim(stream, kind, await self._pending(stream, count, idle), idle)

    async def take_over(
        self, stream: str, kind: type[M], *, idle_seconds: float, count: int = 16, in_hand: Collection[str] = ()
    ) -> Found[M]:
        """Take over up to `count` messages, and a suspect, that a consumer has not touched for `idle_seconds`.

        XAUTOCLAIM would check only ten times `count` messages from the start, and miss those behind messages of living
        consumers. `in_hand` are ids of this stream that the caller holds, which is slow, not dead.
        """
        await self._ensure_group(stream)
        idle = int(idle_seconds * 1000)
        found = await self._pending(stream, idle=idle)
        found = [entry for entry in found if as_text(entry["message_id"]) not in in_hand]
        deliveries = await self._claim(stream, kind, _fresh(found)[:count], idle)
        suspects = _suspects(stream, found)[:1]
        kept = await self._keep(suspects, min_idle=idle)
        return Found(deliveries, suspects[0] if kept else None)

    async def resume(self, stream: str, kind: type[M], in_hand: Collection[str] = ()) -> list[Delivery[M]]:
        """Messages that this consumer held before a restart. Suspects are left to the next take-over."""
        await self._ensure_group(stream)
        found = await self._pending(stream, consumer=self.consumer)
        found = [entry for entry in found if as_text(entry["message_id"]) not in in_hand]
        await self._keep(_suspects(stream, found), HANDED_BACK_SECONDS)
        return await self._claim(stream, kind, _fresh(found), 0)

    async def open(self, suspect: Suspect, kind: type[M]) -> Delivery[M] | None:
        """Deliver a suspect to this consumer. None if another consumer has it, or if it became a dead letter because it
        is unreadable or was delivered too often."""
        stream, message_id = suspect.stream, suspect.message_id
        try:
            found: Any = await self.redis.xpending_range(
                stream, self.group, message_id, message_id, 1, consumername=self.consumer
            )
        except ResponseError as error:
            self._forget(stream, error)
            return None
        if found and found[0]["times_delivered"] >= MAX_DELIVERIES:
            await self._give_up(stream, message_id)
            return None
        return next(iter(await self._claim(stream, kind, found, 0)), None)

    async def close(self, delivery: Delivery[Any]) -> Suspect:
        """Undo opening a suspect that cannot be processed yet."""
        suspect = Suspect(delivery.stream, delivery.message_id, delivery.times - 1)
        await self._keep([suspect])
        return suspect

    async def touch(self, held: Sequence[Held]) -> None:
        """Keep these messages from being taken over. If they were taken over meanwhile, that delivery does not count,
        since their holder was only slow."""
        await self._keep(await self._lowered(held))

    async def hand_back(self, held: Sequence[Held], *, after_fault: bool = False) -> None:
        """Release messages without acknowledging them: the next consumer that checks gets them, and the delivery does
        not count.

        With `after_fault` it counts, because the caller stops for a fault that one of them may have caused.
        """
        if not after_fault:
            held = [each if isinstance(each, Suspect) else replace(each, times=each.times - 1) for each in held]
        await self._keep(await self._lowered(held), HANDED_BACK_SECONDS)

    async def _lowered(self, held: Sequence[Held]) -> list[Held]:
        """The messages with the server's count of deliveries if that is lower, because another living holder has undone
        one. Without suspects that another consumer has taken."""
        lowered: list[Held] = []
        for stream in {each.stream for each in held}:
            known = {as_text(entry["message_id"]): entry for entry in await self._pending(stream)}
            for each in held:
                entry = known.get(each.message_id)
                if each.stream != stream or (isinstance(each, Suspect) and not self._has(entry)):
                    continue
                times = each.times if entry is None else min(each.times, entry["times_delivered"])
                lowered.append(replace(each, times=times))
        return lowered

    def _has(self, entry: Any) -> bool:
        return entry is not None and as_text(entry["consumer"]) == self.consumer

    async def _keep(self, held: Sequence[Held], idle_seconds: float = 0.0, min_idle: int = 0) -> int:
        """Set the messages' idle time, on the server's clock, and their number of deliveries. Returns how many had been
        idle for `min_idle` milliseconds."""
        alike: dict[tuple[str, int], list[str]] = {}
        for each in held:
            alike.setdefault((each.stream, each.times), []).append(each.message_id)
        num_kept = 0
        for (stream, times), ids in alike.items():
            try:
                num_kept += len(
                    await self.redis.xclaim(
                        stream,
                        self.group,
                        self.consumer,
                        min_idle_time=min_idle,
                        message_ids=cast(Any, ids),
                        idle=int(idle_seconds * 1000),
                        retrycount=times,
                        justid=True,
                    )
                )
            except ResponseError as error:
                self._forget(stream, error)
        return num_kept

    async def _pending(
        self, stream: str, count: int = MAX_LOOK, idle: int | None = None, consumer: str | None = None
    ) -> list[Any]:
        """Pending messages, oldest first: `message_id`, `consumer`, `times_delivered`."""
        try:
            found: Any = await self.redis.xpending_range(
                stream, self.group, "-", "+", count, consumername=cast(Any, consumer), idle=idle
            )
        except ResponseError as error:
            self._forget(stream, error)
            return []
        return list(found)

    async def _give_up(self, stream: str, message_id: str) -> None:
        found = cast(list[Any], await self.redis.xrange(stream, message_id, message_id))
        payload = found[0][1].get(BODY, b"") if found else b""
        reason = (
            f"It was given out {MAX_DELIVERIES} times, and each time the service that held it died before it was done. "
            "See the end of these services' logs."
        )
        await self._dead_letters.bury(stream, message_id, payload, reason, fatal=True)

    async def _claim(self, stream: str, kind: type[M], entries: Sequence[Any], idle: int) -> list[Delivery[M]]:
        """Take over pending messages, which counts as a delivery of each."""
        times = {as_text(entry["message_id"]): entry["times_delivered"] + 1 for entry in entries}
        if not times:
            return []
        try:
            claimed: Any = await self.redis.xclaim(stream, self.group, self.consumer, idle, cast(Any, list(times)))
        except ResponseError as error:
            self._forget(stream, error)
            return []
        return await self._read(stream, claimed, kind, times)

    async def forward(self, delivery: Delivery[Any], stream: str, message: msgspec.Struct) -> bool:
        """Publish the successor and acknowledge atomically. Returns False if another consumer has already done so."""
        return await self._forwards.forward(delivery.stream, delivery.message_id, stream, codec.encode(message))

    async def acknowledge(self, deliveries: Sequence[Delivery[Any]]) -> None:
        """Acknowledge and delete messages that have no successor. Idempotent."""
        for stream, ids in _ids_by_stream(deliveries).items():
            async with self.redis.pipeline(transaction=True) as pipe:
                pipe.xack(stream, self.group, *ids)
                pipe.xdel(stream, *ids)
                await pipe.execute()

    async def dead_letter(self, stream: str, message_id: str, payload: bytes, reason: str) -> None:
        """Move one message to the dead letters of its stream (`<prefix>:dead`), with the reason."""
        await self._dead_letters.bury(stream, message_id, payload, reason)

    async def feed(
        self, stream: str, cursor_key: str, field: str, expected: int, messages: Sequence[msgspec.Struct]
    ) -> int:
        """Publish messages number `expected`, `expected` + 1, ... and move the cursor, only if it is at `expected`.

        Returns the cursor afterwards. It is `expected + len(messages)` also if an earlier call, whose reply was lost,
        had already fed them.
        """
        payloads = [codec.encode(message) for message in messages]
        # By text, not by hash: a restarted server does not have the script, and may restart between loading and calling
        # it.
        return int(await cast(Any, self.redis.eval(_FEED, 2, stream, cursor_key, field, expected, *payloads)))

    def _forget(self, stream: str, error: ResponseError) -> None:
        """A stream that was deleted together with its run has no messages. Raises `error` if it is another error."""
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

    async def _read(
        self, stream: str, entries: Sequence[Any], kind: type[M], times: Mapping[str, int] | None = None
    ) -> list[Delivery[M]]:
        deliveries: list[Delivery[M]] = []
        for raw_id, fields in entries:
            message_id = as_text(raw_id)
            if fields is None:  # deleted while pending: another consumer acknowledged it
                await self.redis.xack(stream, self.group, message_id)
                continue
            payload = fields.get(BODY, b"")
            try:
                message = codec.decode(payload, kind)
                _check_run(message, stream)
                self.border(message, stream)
            except MalformedMessageError as error:
                await self.dead_letter(stream, message_id, payload, error.message)
                continue
            deliveries.append(Delivery(message, stream, message_id, (times or {}).get(message_id, 1)))
        return deliveries


def _fresh(entries: Sequence[Any]) -> list[Any]:
    return [entry for entry in entries if entry["times_delivered"] < MAX_TOGETHER]


def _suspects(stream: str, entries: Sequence[Any]) -> list[Suspect]:
    found = [entry for entry in entries if entry["times_delivered"] >= MAX_TOGETHER]
    return [Suspect(stream, as_text(entry["message_id"]), entry["times_delivered"]) for entry in found]


def _admit_all(_message: Any, _stream: str) -> None:
    pass


def _check_run(message: msgspec.Struct, stream: str) -> None:
    """Raise `MalformedMessageError` if a message on a run's stream belongs to another run."""
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
