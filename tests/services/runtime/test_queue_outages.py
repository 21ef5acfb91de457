"""The product's queue server dies under load, and its disk is full: what it acknowledged is there, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import PromptTask
from services.learner.groups.feeder import CURSOR
from services.runtime.connection import connect
from services.runtime.process import end
from services.runtime.queue.queue import BODY, Queue
from services.runtime.queue.server_log import queue_server_fault
from tests.faults import Address, KillableValkey, operators_url
from tests.services.runtime.test_queue import NEXT, PROMPTS, task

RESULTS = streams.scored("run-1")
EVENTS = "run-1-events"


class Load:
    """Feeder, workers of two stages and a reporter, all as fast as they can."""

    def __init__(self, redis: Redis, num_tasks: int) -> None:
        self.redis = redis
        self.num_tasks = num_tasks
        self.published: list[str] = []
        """Ids of messages that have no predecessor, as the server acknowledged them."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        loops = [self.feed(), self.report()]
        loops += [self.work(PROMPTS, NEXT, f"a{number}") for number in range(4)]
        loops += [self.work(NEXT, RESULTS, f"b{number}") for number in range(4)]
        self.tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            yield
        finally:
            await end(self.tasks, seconds=10)

    async def feed(self) -> None:
        queue, at = Queue(self.redis, "g", "feeder"), 0
        while at < self.num_tasks:
            at = await queue.feed(PROMPTS, streams.feeder("run-1"), CURSOR, at, [task(at), task(at + 1)])

    async def report(self) -> None:
        queue = Queue(self.redis, "g", "reporter")
        while True:
            self.published.append(await queue.publish(EVENTS, task(len(self.published))))

    async def work(self, source: str, target: str, name: str) -> None:
        queue = Queue(self.redis, "g", name)
        while True:
            found = await queue.receive([source], PromptTask, count=4, block_seconds=0.05)
            found = found or await queue.reclaim(source, PromptTask, idle_seconds=0.2)
            await asyncio.gather(*(queue.forward(delivery, target, delivery.message) for delivery in found))

    async def until_done(self, number: int) -> None:
        while await self.redis.xlen(RESULTS) < number:
            for loop in self.tasks:
                assert not loop.done() or loop.exception() is None, loop.exception()
            await asyncio.sleep(0.01)

    async def check(self) -> None:
        """Nothing lost, nothing doubled, nothing left over."""
        done = [codec.decode(fields[BODY], PromptTask).sequence for _, fields in await self.entries(RESULTS)]
        assert sorted(done) == list(range(self.num_tasks))
        assert await self.redis.xlen(PROMPTS) == await self.redis.xlen(NEXT) == 0
        assert self.published
        assert set(self.published) <= {message_id.decode() for message_id, _ in await self.entries(EVENTS)}

    async def entries(self, stream: str) -> Any:
        return await self.redis.xrange(stream)


async def test_kills_under_load_lose_and_double_nothing(tmp_path: Path) -> None:
    server = KillableValkey(tmp_path)
    server.start()
    redis = connect(server.url)
    load = Load(redis, num_tasks=600)
    try:
        async with load.running():
            for number in (100, 200, 300, 400, 500):
                await load.until_done(number)
                server.kill()
                await asyncio.to_thread(server.start)
            await load.until_done(600)
        await load.check()
    finally:
        await redis.aclose()
        server.kill()


async def test_a_full_disk_loses_nothing_that_was_acknowledged_and_names_itself(tmp_path: Path) -> None:
    """Valkey exits if it cannot write. It has not acknowledged what it could not keep, and restarts with free space."""
    server = KillableValkey(tmp_path)
    server.room.write_text("150")
    server.start()
    redis = connect(server.url)
    load = Load(redis, num_tasks=600)
    try:
        async with load.running():
            assert await asyncio.to_thread(server.process.wait, 60) == 1
            fault = queue_server_fault(tmp_path)
            assert "writing to the AOF file" in fault
            assert str(tmp_path / "queue") in fault
            await asyncio.to_thread(server.start)  # still no room: it comes up, and ends at the first write
            assert await asyncio.to_thread(server.process.wait, 60) == 1
            server.room.write_text(str(1 << 30))
            await asyncio.to_thread(server.start)
            await load.until_done(600)
        await load.check()
        assert queue_server_fault(tmp_path) == ""
    finally:
        await redis.aclose()
        server.kill()


async def test_no_acknowledged_event_is_lost_at_a_failover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a replica to wait for: killed at full speed, the primary has acknowledged nothing that the replica lacks."""
    primary, other = KillableValkey(tmp_path / "primary"), KillableValkey(tmp_path / "replica")
    for server in (primary, other):
        server.start()
    redis, replica = connect(primary.url), connect(other.url)
    queue = Queue(redis, "g", "learner", num_replicas=1)
    published: list[str] = []

    async def publish() -> None:
        while True:
            published.append(await queue.publish(EVENTS, task(len(published))))

    try:
        await replica.replicaof("127.0.0.1", primary.port)
        while (await replica.info("replication"))["master_link_status"] != "up":
            await asyncio.sleep(0.01)
        publishers = [asyncio.create_task(publish()) for _ in range(8)]
        while len(published) < 300:
            await asyncio.sleep(0)
        primary.kill()
        await end(publishers, seconds=10)
        await replica.replicaof("NO", "ONE")
        assert set(published) <= {message_id.decode() for message_id, _ in await replica.xrange(EVENTS)}
        monkeypatch.setattr("services.runtime.queue.queue.REPLICAS_SECONDS", 0.01)
        alone = Queue(replica, "g", "learner", num_replicas=1)
        assert await alone.publish(EVENTS, task(0)), "an absent replica does not block publishing indefinitely"
    finally:
        await redis.aclose()
        await replica.aclose()
        primary.kill()
        other.kill()


async def test_a_primary_that_was_demoted_is_left_for_the_promoted_replica(tmp_path: Path) -> None:
    """A planned failover: the old primary lives on as a replica, with our connections, and refuses every write."""
    servers = [KillableValkey(tmp_path / name) for name in ("old", "new")]
    for server in servers:
        server.start()
    address = Address(servers[0].port)
    redis = connect(operators_url(await address.open()))
    old, new = (connect(server.url) for server in servers)
    queue = Queue(redis, "g", "worker")
    try:
        for number in range(3):
            await queue.publish(PROMPTS, task(number))
        first, second, third = await queue.receive([PROMPTS], PromptTask, count=3)
        await new.replicaof("127.0.0.1", servers[0].port)
        while (await new.info("replication"))["master_link_status"] != "up":
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(queue.receive([PROMPTS], PromptTask, block_seconds=60))
        while not (await old.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0.01)
        await new.replicaof("NO", "ONE")
        address.target = servers[1].port
        await old.replicaof("127.0.0.1", servers[1].port)
        assert await waiting == []
        await queue.acknowledge([first])
        assert await queue.forward(second, NEXT, second.message)
        await queue.touch([third])
        assert [await new.xlen(stream) for stream in (PROMPTS, NEXT)] == [1, 1]
    finally:
        for client in (redis, old, new):
            await client.aclose()
        await address.close()
        for server in servers:
            server.kill()
