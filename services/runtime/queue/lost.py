"""Finds groups that got lost on their way, and feeds them again.

An unreadable message ends up in the dead letters, so its group would never arrive. Messages only move forward (prompts,
completions, scored or evaluated), each move atomic, so reading the streams in that order misses none: an outstanding
group that is on none of them is lost. It is fed again under the same name, and given up after `MAX_REFEEDS` tries. A
group whose message crashed the services that held it is not fed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import PromptTask
from services.runtime.dead_letters import Buried, buried_groups
from services.runtime.queue.queue import Queue

MAX_REFEEDS = 2
ENTRIES_A_CALL = 64
_NO_LETTER = Buried("it was on no stream", fatal=False)


async def groups_on_streams(redis: Redis, names: Sequence[str]) -> set[str]:
    """Ids of the groups on these streams, which must be given in the order in which messages move."""
    found: set[str] = set()
    for name in names:
        start = "-"
        while entries := cast(list[Any], await redis.xrange(name, min=start, count=ENTRIES_A_CALL)):
            found |= {group for _, fields in entries if (group := codec.group_of(fields.get(b"m", b""))) is not None}
            start = "(" + entries[-1][0].decode()
    return found


async def feed_lost(
    queue: Queue, run_id: str, judged: str, tasks: Iterable[PromptTask]
) -> tuple[list[str], dict[str, Buried]]:
    """Feed the outstanding `tasks` that are on no stream again. `judged` is the last stream for their purpose. Returns
    the group ids fed again, and those given up with their dead letters."""
    present = await groups_on_streams(queue.redis, (streams.prompts(run_id), streams.completions(run_id), judged))
    lost = [task for task in tasks if task.group_id not in present]
    return await refeed(queue, run_id, lost) if lost else ([], {})


async def refeed(queue: Queue, run_id: str, tasks: Iterable[PromptTask]) -> tuple[list[str], dict[str, Buried]]:
    """Feed lost tasks again, each atomically with its count; see `feed_lost`."""
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
