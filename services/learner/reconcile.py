"""Finding groups that are on no stream any more, and feeding them again.

A message that nobody can read ends in the dead letters; its group would never arrive and, since groups are decided in
feeding order, hold up the run. Messages only move forward (prompts, completions, scored), each move atomic, so reading
the streams in that order misses none: what is outstanding and on none of them is lost. It is fed again under its own
number; after `MAX_REFEEDS` tries it is declared lost for good and counts as dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.errors import MalformedMessageError
from services.contracts.messages import CompletedGroup, PromptTask, ScoredGroup

MAX_REFEEDS = 2
_LOST = "lost"


async def groups_on_streams(redis: Redis, names: Sequence[str]) -> set[str]:
    """Ids of the groups on these streams; give the streams in the order in which messages move."""
    found: set[str] = set()
    for name in names:
        entries: Any = await redis.xrange(name)
        found |= {group for _, fields in entries if (group := _group_of(fields.get(b"m", b""))) is not None}
    return found


def _group_of(payload: bytes) -> str | None:
    try:
        message: msgspec.Struct = codec.decode_any(payload)
    except MalformedMessageError:
        return None
    if isinstance(message, ScoredGroup):
        return message.group.task.group_id
    if isinstance(message, CompletedGroup):
        return message.task.group_id
    return message.group_id if isinstance(message, PromptTask) else None


async def refeed(redis: Redis, run_id: str, tasks: Iterable[PromptTask]) -> tuple[list[str], list[str]]:
    """Feed lost tasks again. Returns the group ids fed again and those given up."""
    key = streams.feeder(run_id)
    again: list[str] = []
    given_up: list[str] = []
    for task in tasks:
        tries = int(await redis.hincrby(key, f"refed:{task.group_id}", 1))
        if tries > MAX_REFEEDS:
            given_up.append(task.group_id)
            continue
        await redis.xadd(streams.prompts(run_id), {b"m": codec.encode(task)})
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
