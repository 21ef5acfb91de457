"""The queue's promises on a real Valkey: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import msgspec
import pytest
from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import DeadLetter, PromptTask, ScoredGroup
from services.runtime.queue.queue import BODY, Queue
from tests.unit.contracts.examples import COMPLETED, TASK, VERDICTS

SCORED = ScoredGroup(group=COMPLETED, verdicts=VERDICTS, verifier="verifier-0")
PROMPTS = streams.prompts("run-1")
NEXT = streams.completions("run-1")


def task(number: int) -> PromptTask:
    return msgspec.structs.replace(TASK, sequence=number, group_id=f"train-{number}")


async def take(queue: Queue, count: int = 1) -> list[int]:
    return [item.message.sequence for item in await queue.receive([PROMPTS], PromptTask, count=count)]


async def test_each_message_goes_to_one_consumer(redis: Redis) -> None:
    a, b = Queue(redis, "g", "a"), Queue(redis, "g", "b")
    for number in range(6):
        await a.publish(PROMPTS, task(number))
    assert await take(a, 3) == [0, 1, 2]
    assert await take(b, 9) == [3, 4, 5]
    assert await a.receive([PROMPTS], PromptTask, block_seconds=0.01) == []


async def test_of_two_holders_of_a_message_one_publishes_its_successor(redis: Redis) -> None:
    a, b = Queue(redis, "g", "a"), Queue(redis, "g", "b")
    await a.publish(PROMPTS, task(0))
    [mine] = await a.receive([PROMPTS], PromptTask)
    [taken_over] = await b.reclaim(PROMPTS, PromptTask, idle_seconds=0)
    assert taken_over.message == mine.message
    assert await a.forward(mine, NEXT, task(0)) is True
    assert await b.forward(taken_over, NEXT, task(0)) is False
    assert await redis.xlen(NEXT) == 1
    assert await redis.xlen(PROMPTS) == 0


async def test_a_touched_message_is_not_reclaimed(redis: Redis) -> None:
    a, b = Queue(redis, "g", "a"), Queue(redis, "g", "b")
    await a.publish(PROMPTS, task(0))
    held = await a.receive([PROMPTS], PromptTask)
    await a.touch(held)
    assert await b.reclaim(PROMPTS, PromptTask, idle_seconds=60) == []
    assert [item.message.sequence for item in await a.own_pending(PROMPTS, PromptTask)] == [0]


async def test_a_dead_workers_messages_are_found_behind_those_of_many_living_ones(redis: Redis) -> None:
    alive, dead, other = (Queue(redis, "g", name) for name in ("alive", "dead", "other"))
    await alive.feed(PROMPTS, streams.feeder("run-1"), "train", 0, [task(number) for number in range(302)])
    await alive.receive([PROMPTS], PromptTask, count=300)
    await dead.hand_back(await dead.receive([PROMPTS], PromptTask, count=2))
    found = await other.reclaim(PROMPTS, PromptTask, idle_seconds=60)
    assert [item.message.sequence for item in found] == [300, 301]


async def test_what_is_handed_back_is_taken_at_once_by_others_and_by_the_next_life(redis: Redis) -> None:
    a, b = Queue(redis, "g", "a"), Queue(redis, "g", "b")
    for number in range(2):
        await a.publish(PROMPTS, task(number))
    held = await a.receive([PROMPTS], PromptTask, count=2)
    await a.hand_back(held)
    assert [item.message.sequence for item in await a.own_pending(PROMPTS, PromptTask)] == [0, 1]
    assert await b.reclaim(PROMPTS, PromptTask, idle_seconds=3600) == [], "the next life works on them"
    await a.hand_back(held[1:])
    assert [item.message.sequence for item in await b.reclaim(PROMPTS, PromptTask, idle_seconds=3600)] == [1]
    assert await b.forward(held[1], NEXT, task(1)) is True
    await a.hand_back(held)  # one of them is handled by now
    assert await redis.xlen(PROMPTS) == 1


async def test_a_restarted_consumer_finds_what_it_held_in_order(redis: Redis) -> None:
    first = Queue(redis, "g", "learner-0")
    for number in range(5):
        await first.publish(PROMPTS, task(number))
    held = await first.receive([PROMPTS], PromptTask, count=4)
    await first.acknowledge([held[1]])
    again = Queue(redis, "g", "learner-0")
    assert [item.message.sequence for item in await again.own_pending(PROMPTS, PromptTask)] == [0, 2, 3]
    assert await take(again) == [4]


async def test_unreadable_bytes_go_to_the_dead_letters_with_the_reason(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    await redis.xadd(PROMPTS, {BODY: b"TN\x02\x02junk"})
    await redis.xadd(PROMPTS, {b"other": b"field"})
    await queue.publish(PROMPTS, task(7))
    assert await take(queue, 10) == [7]
    letters = [codec.decode(fields[BODY], DeadLetter) for _, fields in await redis.xrange(streams.dead("run-1"))]
    assert len(letters) == 2
    assert letters[0].payload == b"TN\x02\x02junk"
    assert "does not parse" in letters[0].reason
    assert letters[0].stream == PROMPTS
    assert await redis.xlen(PROMPTS) == 1


async def test_feeding_the_same_numbers_twice_feeds_once(redis: Redis) -> None:
    queue = Queue(redis, "g", "learner")
    key = streams.feeder("run-1")
    assert await queue.feed(PROMPTS, key, "next", 0, [task(0), task(1)]) == 2
    assert await queue.feed(PROMPTS, key, "next", 0, [task(0), task(1)]) == 2
    assert await queue.feed(PROMPTS, key, "next", 2, [task(2)]) == 3
    assert await take(queue, 10) == [0, 1, 2]


async def test_streams_that_vanish_are_made_again(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    await queue.publish(PROMPTS, task(0))
    assert await take(queue) == [0]
    await redis.flushall()
    assert await queue.receive([PROMPTS], PromptTask, block_seconds=0.01) == []
    await queue.publish(PROMPTS, task(1))
    assert await take(queue) == [1]


async def test_holding_messages_of_a_deleted_stream_is_no_error(redis: Redis) -> None:
    queue = Queue(redis, "rollout", "a")
    for remains in (True, False):
        await queue.publish(PROMPTS, TASK)
        held = await queue.receive([PROMPTS], PromptTask)
        if not remains:
            await redis.delete(PROMPTS)
        await queue.touch(held)
        assert len(await queue.own_pending(PROMPTS, PromptTask)) == remains
        if not remains:
            await redis.delete(PROMPTS)
        assert len(await queue.reclaim(PROMPTS, PromptTask, idle_seconds=0)) == remains
        assert await queue.forward(held[0], streams.completions("r1"), TASK) == remains


async def test_many_workers_that_drop_work_lose_and_repeat_nothing(redis: Redis) -> None:
    """Twelve workers take 200 messages; each forgets a third of what it takes, others reclaim it."""
    source = Queue(redis, "g", "source")
    for number in range(200):
        await source.publish(PROMPTS, task(number))
    chance = random.Random(5)

    async def work(name: str) -> None:
        queue = Queue(redis, "g", name)
        while await redis.xlen(PROMPTS):
            held = await queue.receive([PROMPTS], PromptTask, count=3, block_seconds=0.005)
            held += await queue.reclaim(PROMPTS, PromptTask, idle_seconds=0, count=2)
            for item in held:
                if chance.random() > 1 / 3:
                    await queue.forward(item, NEXT, item.message)

    await asyncio.gather(*(work(f"w{index}") for index in range(12)))
    done = [codec.decode(fields[BODY], PromptTask).sequence for _, fields in await redis.xrange(NEXT)]
    assert sorted(done) == list(range(200))


@pytest.mark.parametrize(
    ("stream", "message"),
    [(streams.prompts, TASK), (streams.completions, COMPLETED), (streams.scored, SCORED), (streams.evaluated, SCORED)],
)
async def test_a_message_of_another_run_than_its_streams_is_a_dead_letter(
    redis: Redis, stream: Callable[[str], str], message: msgspec.Struct
) -> None:
    """Whoever handled it would publish what comes of it into that other run."""
    queue = Queue(redis, "g", "a")
    await queue.publish(stream("mine"), message)
    assert await queue.receive([stream("mine")], type(message), block_seconds=0.01) == []
    [(_, fields)] = await redis.xrange(streams.dead("mine"))
    letter = codec.decode(fields[BODY], DeadLetter)
    assert letter.reason == "message of run 'run-1' on a stream of run 'mine'."
    assert letter.payload == codec.encode(message)
    assert await redis.xlen(stream("mine")) == 0
    assert await redis.keys("*run-1*") == []
