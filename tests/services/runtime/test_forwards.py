"""Forwards that are ready together share a round trip, and stay apart in what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.contracts import codec
from services.contracts.messages import PromptTask
from services.runtime.queue import forwards
from services.runtime.queue.queue import BODY, Delivery, Queue
from tests.services.runtime.test_queue import NEXT, PROMPTS, task


async def held(queue: Queue, count: int) -> list[Delivery[PromptTask]]:
    for number in range(count):
        await queue.publish(PROMPTS, task(number))
    return await queue.receive([PROMPTS], PromptTask, count=count)


def started(queue: Queue, deliveries: list[Delivery[PromptTask]]) -> list[asyncio.Task[bool]]:
    return [asyncio.create_task(queue.forward(item, NEXT, item.message)) for item in deliveries]


async def successors(redis: Redis) -> list[int]:
    return [codec.decode(fields[BODY], PromptTask).sequence for _, fields in await redis.xrange(NEXT)]


async def pending(queue: Queue) -> list[int]:
    return [item.message.sequence for item in await queue.own_pending(PROMPTS, PromptTask)]


async def num_scripts(redis: Redis) -> int:
    found: Any = await redis.info("commandstats")
    return int(found.get("cmdstat_eval", {"calls": 0})["calls"])


@asynccontextmanager
async def writes_paused(redis: Redis) -> AsyncIterator[None]:
    await redis.client_pause(600_000, all=False)
    try:
        yield
    finally:
        await redis.client_unpause()


async def stuck(redis: Redis) -> list[str]:
    """Connections' ids of commands that are with the server, which does not answer them."""
    return [client["id"] for client in await redis.client_list() if "b" in client["flags"]]


async def until_stuck(redis: Redis, other_than: str = "") -> str:
    """Until that is one. Returns its connection's id."""
    while True:
        found = await stuck(redis)
        if len(found) == 1 and found != [other_than]:
            return found[0]
        await asyncio.sleep(0.001)


async def test_those_that_are_ready_together_share_a_round_trip_in_order(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    deliveries = await held(queue, 8)
    before = await num_scripts(redis)
    assert await asyncio.gather(*started(queue, deliveries)) == [True] * 8
    assert await num_scripts(redis) == before + 1
    assert await successors(redis) == list(range(8))
    assert await redis.xlen(PROMPTS) == 0


async def test_each_is_told_its_own_result(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    first, second, third = await held(queue, 3)
    await Queue(redis, "g", "b").forward(second, NEXT, second.message)
    assert await asyncio.gather(*started(queue, [first, second, third, first])) == [True, False, True, False]
    assert await successors(redis) == [1, 0, 2]


async def test_what_comes_while_a_round_trip_is_in_flight_goes_with_the_next(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    deliveries = await held(queue, 6)
    before = await num_scripts(redis)
    async with writes_paused(redis):
        tasks = started(queue, deliveries[:1])
        await until_stuck(redis)
        tasks += started(queue, deliveries[1:])
        await until_stuck(redis)
    assert await asyncio.gather(*tasks) == [True] * 6
    assert await num_scripts(redis) == before + 2
    assert await successors(redis) == list(range(6))


async def test_a_round_that_has_enough_bytes_takes_no_more(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(redis, "g", "a")
    deliveries = await held(queue, 5)
    monkeypatch.setattr(forwards, "MAX_ROUND_BYTES", 2 * len(codec.encode(deliveries[0].message)))
    before = await num_scripts(redis)
    assert await asyncio.gather(*started(queue, deliveries)) == [True] * 5
    assert await num_scripts(redis) == before + 3
    assert await successors(redis) == list(range(5))


async def test_who_is_cancelled_before_it_is_sent_keeps_its_message_and_the_others_do_not_notice(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    deliveries = await held(queue, 4)
    async with writes_paused(redis):
        tasks = started(queue, deliveries[:1])
        await until_stuck(redis)
        tasks += started(queue, deliveries[1:])
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait(tasks[2:3])
    assert await asyncio.gather(tasks[0], tasks[1], tasks[3]) == [True] * 3
    assert await successors(redis) == [0, 1, 3]
    assert await pending(queue) == [2]


async def test_who_comes_as_the_only_one_leaves_a_waiting_round_still_waits_for_the_one_in_flight(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    deliveries = await held(queue, 3)
    async with writes_paused(redis):
        tasks = started(queue, deliveries[:1])
        await until_stuck(redis)
        tasks += started(queue, deliveries[1:2])
        await asyncio.sleep(0)
        tasks[1].cancel()
        tasks += started(queue, deliveries[2:])
        await asyncio.wait(tasks[1:2])
        for _ in range(20):  # long enough for a second one to reach the server
            await redis.ping()
        assert len(await stuck(redis)) == 1
    assert await asyncio.gather(tasks[0], tasks[2]) == [True, True]
    assert await successors(redis) == [0, 2]
    assert await pending(queue) == [1]


async def test_who_is_cancelled_in_flight_leaves_the_others_their_results(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    deliveries = await held(queue, 4)
    async with writes_paused(redis):
        tasks = started(queue, deliveries[:3])
        await until_stuck(redis)
        tasks[0].cancel()
        tasks += started(queue, deliveries[3:])
        await asyncio.wait(tasks[:1])
    assert await asyncio.gather(*tasks[1:]) == [True] * 3
    assert await successors(redis) == [0, 1, 2, 3], "it had been sent"


async def test_a_round_trip_that_nobody_waits_for_is_given_up_and_the_next_one_goes(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    deliveries = await held(queue, 4)
    async with writes_paused(redis):
        tasks = started(queue, deliveries[:2])
        connection = await until_stuck(redis)
        tasks += started(queue, deliveries[2:])
        await asyncio.sleep(0)
        for leaving in tasks[:2]:
            leaving.cancel()
        await until_stuck(redis, other_than=connection)
    assert await asyncio.gather(*tasks[2:]) == [True, True]
    assert await successors(redis) == [2, 3]
    assert await pending(queue) == [0, 1]
    assert await asyncio.gather(*started(queue, deliveries[:2])) == [True, True]


async def test_an_error_reaches_all_of_a_round_and_spoils_no_later_one(redis: Redis) -> None:
    queue = Queue(redis, "g", "a")
    deliveries = await held(queue, 2)
    await redis.set(PROMPTS + "-text", "x")
    wrong = [Delivery(item.message, PROMPTS + "-text", item.message_id) for item in deliveries]
    results = await asyncio.gather(*started(queue, wrong), return_exceptions=True)
    assert [type(result) for result in results] == [ResponseError] * 2
    assert await asyncio.gather(*started(queue, deliveries)) == [True, True]
