"""Groups whose message is on no stream are fed again, a bounded number of times."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.contracts import codec, streams
from services.contracts.messages import PromptTask
from services.learner.program.resume import add_lost, read_lost
from services.runtime.dead_letters import DeadLetters
from services.runtime.queue.lost import MAX_REFEEDS, groups_on_streams, refeed
from services.runtime.queue.queue import Queue
from tests.services.learner.conftest import make_group


async def test_a_lost_group_is_fed_again_and_finally_given_up(redis: Redis) -> None:
    names = [streams.prompts("run"), streams.completions("run"), streams.scored("run")]
    tasks = [make_group(sequence).group.task for sequence in range(4)]
    await redis.xadd(names[0], {b"m": codec.encode(tasks[0])})
    await redis.xadd(names[1], {b"m": codec.encode(make_group(1).group)})
    await redis.xadd(names[2], {b"m": codec.encode(make_group(2))})
    await redis.xadd(names[2], {b"m": b"rubbish"})
    present = await groups_on_streams(redis, names)
    assert present == {"train-0", "train-1", "train-2"}
    queue = Queue(redis, "learner", "learner")
    for _ in range(MAX_REFEEDS):
        assert await refeed(queue, "run", [tasks[3]]) == (["train-3"], {})
    entries = await redis.xrange(names[0])
    assert codec.decode(entries[-1][1][b"m"], PromptTask) == tasks[3]
    again, given_up = await refeed(queue, "run", [tasks[3]])
    assert (again, list(given_up), given_up["train-3"].fatal) == ([], ["train-3"], False)
    assert await add_lost(redis, "run", {3: "lost"}) == await read_lost(redis, "run") == {3: "lost"}
    assert await add_lost(redis, "run", {7: "fatal"}) == await read_lost(redis, "run") == {3: "lost", 7: "fatal"}


async def test_a_group_whose_message_crashed_its_services_is_not_fed_again(redis: Redis) -> None:
    """A group with another kind of dead letter is fed again: its message was unreadable, but the next may not be."""
    prompts, task = streams.prompts("run"), make_group(0).group.task
    queue = Queue(redis, "rollout", "rollout-0")
    await queue.publish(prompts, task)
    await queue.publish(prompts, make_group(1).group.task)
    first, second = await queue.receive([prompts], PromptTask, count=2)
    await queue.dead_letter(prompts, second.message_id, codec.encode(second.message), "no rollout server can read it")
    letters = DeadLetters(redis, "rollout", "rollout-0")
    await letters.bury(prompts, first.message_id, codec.encode(first.message), "given out 5 times", fatal=True)
    assert await redis.xlen(prompts) == 0
    again, given_up = await refeed(Queue(redis, "learner", "learner"), "run", [first.message, second.message])
    assert again == ["train-1"]
    assert given_up["train-0"].fatal
    assert "given out 5 times" in given_up["train-0"].reason


@pytest.mark.parametrize("num_commands", [0, 1, 2, 3, 4])
async def test_a_learner_that_dies_while_it_feeds_again_has_counted_what_it_fed(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, num_commands: int
) -> None:
    """It may be killed after any command. If a try that fed nothing counted, the group would be given up too early."""
    execute, left = redis.execute_command, num_commands

    async def dying(*args: Any, **options: Any) -> Any:
        nonlocal left
        if not left:
            raise RedisError("killed")
        left -= 1
        return await execute(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(redis, "execute_command", dying)
        try:
            await refeed(Queue(redis, "learner", "learner"), "run", [make_group(0).group.task])
        except RedisError:
            assert num_commands < 3
    fed = await redis.xlen(streams.prompts("run"))
    assert int(await redis.hget(streams.feeder("run"), "refed:train-0") or 0) == fed == (num_commands > 2)  # type: ignore[misc]
