"""Groups whose message is on no stream any more are fed again, a bounded number of times."""

from __future__ import annotations

from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import PromptTask
from services.learner.reconcile import MAX_REFEEDS, add_lost, groups_on_streams, read_lost, refeed
from tests.learner.conftest import make_group


async def test_what_is_on_no_stream_is_found_fed_again_and_at_last_given_up(redis: Redis) -> None:
    names = [streams.prompts("run"), streams.completions("run"), streams.scored("run")]
    tasks = [make_group(sequence).group.task for sequence in range(4)]
    await redis.xadd(names[0], {b"m": codec.encode(tasks[0])})
    await redis.xadd(names[1], {b"m": codec.encode(make_group(1).group)})
    await redis.xadd(names[2], {b"m": codec.encode(make_group(2))})
    await redis.xadd(names[2], {b"m": b"rubbish"})
    present = await groups_on_streams(redis, names)
    assert present == {"train-0", "train-1", "train-2"}
    for _ in range(MAX_REFEEDS):
        assert await refeed(redis, "run", [tasks[3]]) == (["train-3"], [])
    entries = await redis.xrange(names[0])
    assert codec.decode(entries[-1][1][b"m"], PromptTask) == tasks[3]
    assert await refeed(redis, "run", [tasks[3]]) == ([], ["train-3"])
    assert await add_lost(redis, "run", [3]) == await read_lost(redis, "run") == frozenset({3})
