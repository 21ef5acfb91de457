"""Finding groups that are on no stream any more, and feeding them again.

A message that nobody can read ends in the dead letters; its group would never arrive and, since groups are decided in
feeding order, hold up the run. Messages only move forward (prompts, completions, scored), each move atomic, so reading
the streams in that order misses none: what is outstanding and on none of them is lost. It is fed again under its own
number; after `MAX_REFEEDS` tries it is declared lost for good and counts as dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import PromptTask
from services.runtime.queue import Queue

MAX_REFEEDS = 2
ENTRIES_A_CALL = 64
_LOST = "lost"


class _Names(msgspec.Struct):
    """What of a task, completed or scored group says which group it is. The rest is passed over unread: with long
    responses and thousands of groups it is gigabytes."""

    group_id: str = ""
    task: _Names | None = None
    group: _Names | None = None


_NAMES = msgspec.msgpack.Decoder(_Names)
_HEADER = codec.MAGIC + bytes((codec.VERSION,))


async def groups_on_streams(redis: Redis, names: Sequence[str]) -> set[str]:
    """Ids of the groups on these streams; give the streams in the order in which messages move."""
    found: set[str] = set()
    for name in names:
        start = "-"
        while entries := cast(list[Any], await redis.xrange(name, min=start, count=ENTRIES_A_CALL)):
            found |= {group for _, fields in entries if (group := _group_of(fields.get(b"m", b""))) is not None}
            start = "(" + entries[-1][0].decode()
    return found


def _group_of(payload: bytes) -> str | None:
    if payload[: len(_HEADER)] != _HEADER:
        return None
    try:
        message = _NAMES.decode(payload[len(_HEADER) + 1 :])
    except (msgspec.DecodeError, ValueError):
        return None
    while (inner := message.group or message.task) is not None:
        message = inner
    return message.group_id or None


async def refeed(queue: Queue, run_id: str, tasks: Iterable[PromptTask]) -> tuple[list[str], list[str]]:
    """Feed lost tasks again, each in one step with its count. Returns the group ids fed again and those given up."""
    key = streams.feeder(run_id)
    again: list[str] = []
    given_up: list[str] = []
    for task in tasks:
        field = f"refed:{task.group_id}"
        tries = int(await cast(Any, queue.redis.hget(key, field)) or 0)
        if tries >= MAX_REFEEDS:
            given_up.append(task.group_id)
            continue
        await queue.feed(streams.prompts(run_id), key, field, tries, [task])
        again.append(task.group_id)
    return again, given_up


async def read_lost(redis: Redis, run_id: str) -> frozenset[int]:
    """Sequence numbers of train groups that were given up. In Redis, so that a replay comes to the same decision."""
    value: Any = await redis.hget(streams.feeder(run_id), _LOST)
    return frozenset(json.loads(value)) if value else frozenset()


async def add_lost(redis: Redis, run_id: str, sequences: Iterable[int]) -> frozenset[int]:
    """Give up these train groups for good."""
    lost = await read_lost(redis, run_id) | frozenset(sequences)
    await redis.hset(streams.feeder(run_id), _LOST, json.dumps(sorted(lost)))
    return lost
