"""Finding groups that are on no stream any more, and feeding them again.

A message that nobody can read ends in the dead letters; its group would never arrive and, since groups are decided in
feeding order, hold up the run. Messages only move forward (prompts, completions, scored), each move atomic, so reading
the streams in that order misses none: what is outstanding and on none of them is lost. It is fed again under its own
number; after `MAX_REFEEDS` tries it is declared lost for good and counts as dropped. A group whose message ended the
services that held it is not fed again at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import PromptTask
from services.learner.groups.ledger import DropReason
from services.runtime.dead_letters import Buried, buried_groups
from services.runtime.queue.queue import Queue

MAX_REFEEDS = 2
ENTRIES_A_CALL = 64
_REASONS: Final[tuple[DropReason, ...]] = ("lost", "fatal")
"""Fields of the feeder hash with sequence numbers."""
_NO_LETTER = Buried("it was on no stream", fatal=False)


async def groups_on_streams(redis: Redis, names: Sequence[str]) -> set[str]:
    """Ids of the groups on these streams; give the streams in the order in which messages move."""
    found: set[str] = set()
    for name in names:
        start = "-"
        while entries := cast(list[Any], await redis.xrange(name, min=start, count=ENTRIES_A_CALL)):
            found |= {group for _, fields in entries if (group := codec.group_of(fields.get(b"m", b""))) is not None}
            start = "(" + entries[-1][0].decode()
    return found


async def refeed(queue: Queue, run_id: str, tasks: Iterable[PromptTask]) -> tuple[list[str], dict[str, Buried]]:
    """Feed lost tasks again, each in one step with its count. Returns the group ids fed again, and those given up with
    what is known of them."""
    key = streams.feeder(run_id)
    buried = await buried_groups(queue.redis, run_id)
    again: list[str] = []
    given_up: dict[str, Buried] = {}
    for task in tasks:
        field = f"refed:{task.group_id}"
        tries = int(await cast(Any, queue.redis.hget(key, field)) or 0)
        letter = buried.get(task.group_id, _NO_LETTER)
        if letter.fatal or tries >= MAX_REFEEDS:
            given_up[task.group_id] = letter
            continue
        await queue.feed(streams.prompts(run_id), key, field, tries, [task])
        again.append(task.group_id)
    return again, given_up


async def read_lost(redis: Redis, run_id: str) -> dict[int, DropReason]:
    """Sequence numbers of train groups that were given up. In Redis, so that a replay comes to the same decision."""
    lost: dict[int, DropReason] = {}
    for reason in _REASONS:
        value: Any = await redis.hget(streams.feeder(run_id), reason)
        lost |= dict.fromkeys(json.loads(value) if value else [], reason)
    return lost


async def add_lost(redis: Redis, run_id: str, sequences: Mapping[int, DropReason]) -> dict[int, DropReason]:
    """Give up these train groups for good."""
    lost = await read_lost(redis, run_id) | dict(sequences)
    fields = {reason: sorted(number for number, why in lost.items() if why == reason) for reason in _REASONS}
    await redis.hset(streams.feeder(run_id), mapping={reason: json.dumps(found) for reason, found in fields.items()})
    return lost
