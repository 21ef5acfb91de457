"""What is counted of a message whose holders end, and what becomes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.events import Note
from services.contracts.messages import DeadLetter, PromptTask
from services.runtime import dead_letters
from services.runtime.connection import connect
from services.runtime.dead_letters import buried_groups
from services.runtime.queue.queue import BODY, MAX_DELIVERIES, MAX_TOGETHER, Delivery, Queue
from tests.faults import KillableValkey
from tests.services.runtime.test_queue import PROMPTS, task

DEAD = streams.dead("run-1")


async def next_life(queue: Queue) -> list[Delivery[PromptTask]]:
    """What the next process of this name gets: its own, new ones, and where there are neither a suspect."""
    found = await queue.resume(PROMPTS, PromptTask)
    found += await queue.receive([PROMPTS], PromptTask, count=100, block_seconds=0.001)
    if found:
        return found
    left = await queue.take_over(PROMPTS, PromptTask, idle_seconds=60)
    opened = None if left.suspect is None else await queue.open(left.suspect, PromptTask)
    return left.deliveries if opened is None else [opened]


async def letters(redis: Redis) -> list[DeadLetter]:
    return [codec.decode(fields[BODY], DeadLetter) for _, fields in cast(Any, await redis.xrange(DEAD))]


async def test_a_message_that_kills_is_given_out_five_times_and_those_beside_it_are_done(redis: Redis) -> None:
    queue = Queue(redis, "g", "rollout-0")
    for number in range(8):
        await queue.publish(PROMPTS, task(number))
    lives: list[list[int]] = []
    while await redis.xlen(PROMPTS):
        found = await next_life(queue)
        lives.append([item.message.sequence for item in found])
        for item in found:
            if item.message.sequence == 2:
                break  # and the process with it
            await queue.forward(item, streams.completions("run-1"), item.message)
    together, alone = [life for life in lives if len(life) > 1], [life for life in lives if len(life) == 1]
    assert together == [list(range(8)), list(range(2, 8))]
    assert alone[:3] == [[2]] * (MAX_DELIVERIES - MAX_TOGETHER)
    assert sorted(alone[3:]) == [[number] for number in range(3, 8)]
    [letter] = await letters(redis)
    assert codec.decode(letter.payload, PromptTask) == task(2)
    assert "given out 5 times" in letter.reason
    assert list(await buried_groups(redis, "run-1")) == ["train-2"]
    [(_, fields)] = cast(Any, await redis.xrange(streams.EVENTS))
    note = codec.decode(fields[BODY], Note)
    assert note.run_id == "run-1"
    assert "train-2 on prompts: It was given out 5 times" in note.text


async def test_planned_stops_do_not_count(redis: Redis) -> None:
    queue = Queue(redis, "g", "rollout-0")
    await queue.publish(PROMPTS, task(0))
    for _ in range(2 * MAX_DELIVERIES):
        [item] = await next_life(queue)
        assert item.times == 1
        await queue.hand_back([item])
    for times in range(1, MAX_TOGETHER + 1):  # a fault ends these
        [item] = await next_life(queue)
        assert item.times == times
        await queue.hand_back([item], after_fault=True)
    for _ in range(2 * MAX_DELIVERIES):
        [item] = await next_life(queue)
        assert item.is_suspect
        await queue.hand_back([item])
    assert await redis.xlen(DEAD) == 0


async def test_holders_that_are_only_slow_do_not_count(redis: Redis) -> None:
    slow = Queue(redis, "g", "slow")
    await slow.publish(PROMPTS, task(0))
    held = await slow.receive([PROMPTS], PromptTask)
    for number in range(2 * MAX_DELIVERIES):
        hasty = Queue(redis, "g", f"hasty-{number}")
        [taken] = (await hasty.take_over(PROMPTS, PromptTask, idle_seconds=0)).deliveries
        await slow.touch(held)
        await hasty.touch([taken])
    assert await slow.forward(held[0], streams.completions("run-1"), task(0))


async def test_a_suspect_that_waits_is_given_up_to_a_holder_that_lives(redis: Redis) -> None:
    slow, hasty = Queue(redis, "g", "slow"), Queue(redis, "g", "hasty")
    await slow.publish(PROMPTS, task(0))
    for _ in range(MAX_DELIVERIES - 1):
        await next_life(slow)
    [held] = await next_life(slow)
    assert held.times == MAX_DELIVERIES
    suspect = (await hasty.take_over(PROMPTS, PromptTask, idle_seconds=0)).suspect
    assert suspect is not None
    await slow.touch([held])
    await hasty.touch([suspect])
    assert await hasty.open(suspect, PromptTask) is None
    assert await redis.xlen(DEAD) == 0, "it is worked on"
    assert await slow.forward(held, streams.completions("run-1"), task(0))


async def test_of_two_that_find_a_suspect_one_has_it(redis: Redis) -> None:
    dead, *others = (Queue(redis, "g", name) for name in "abc")
    await dead.publish(PROMPTS, task(0))
    await dead.hand_back(await dead.receive([PROMPTS], PromptTask), after_fault=True)
    await dead.hand_back(await next_life(dead), after_fault=True)
    calls = [other.take_over(PROMPTS, PromptTask, idle_seconds=60) for other in others]
    assert sorted(found.suspect is None for found in await asyncio.gather(*calls)) == [False, True]


async def test_deaths_are_counted_across_an_end_of_the_queue_server(tmp_path: Path) -> None:
    server = KillableValkey(tmp_path)
    server.start()
    redis = connect(server.url)
    queue = Queue(redis, "g", "rollout-0")
    try:
        await queue.publish(PROMPTS, task(0))
        for times in range(1, MAX_DELIVERIES + 1):
            [item] = await next_life(queue)
            assert item.times == times
            server.kill()
            server.start()
        assert await next_life(queue) == []
        assert len(await letters(redis)) == 1
    finally:
        await redis.aclose()
        server.kill()


async def test_dead_letters_are_bounded_and_told_once(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MAX_LETTERS", 20)
    monkeypatch.setattr(dead_letters, "MAX_BYTES", 6000)
    monkeypatch.setattr(dead_letters, "MAX_PAYLOAD_BYTES", 2000)
    queue = Queue(redis, "g", "rollout-0")

    async def flood(*payloads: bytes) -> list[bytes]:
        for payload in payloads:
            await redis.xadd(PROMPTS, {BODY: payload})
        assert await queue.receive([PROMPTS], PromptTask, count=1000, block_seconds=0.001) == []
        return [letter.payload for letter in await letters(redis)]

    small = [b"%d" % number for number in range(100)]
    assert await flood(*small) == small[-20:]
    large = [b"%d" % number * 1000 for number in range(10)]
    kept = await flood(*large)
    assert kept == large[-len(kept) :]
    assert sum(map(len, kept)) <= 6000 < sum(map(len, kept)) + 3 * 1000
    [*_, cut] = await flood(b"x" * 5000)
    assert cut == b"x" * 2000
    assert "first 2000 of 5000 bytes" in (await letters(redis))[-1].reason
    added = (await redis.xinfo_stream(DEAD))["entries-added"]
    assert added == 111, "the server counts those that went"
    assert await redis.xlen(streams.EVENTS) == 1
