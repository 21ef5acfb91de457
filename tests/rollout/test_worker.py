"""The sampling loop while the queue server gives way. No engine: what it would do is not asked here."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis

from services.contracts import codec, streams
from services.contracts.messages import CompletedGroup, PromptTask
from services.rollout.server import EngineServer
from services.rollout.worker import RolloutWorker
from services.runtime.life import end
from services.runtime.queue import HANDED_BACK_SECONDS, Queue
from services.runtime.registry import Presence
from tests.faults import Away
from tests.learner.conftest import make_group


async def test_a_worker_that_starts_without_queue_server_takes_up_what_is_its_own(redis: Redis) -> None:
    """An outage that begins while the engine starts. Were its fault to end the worker, the server would hold its groups
    and look ready for ever."""
    stream = streams.prompts("run")
    queue = Queue(redis, streams.GROUP_ROLLOUT, "rollout-0")
    await queue.publish(stream, make_group(0).group.task)
    assert len(await queue.receive([stream], PromptTask)) == 1
    queue.redis = away = Away()
    unused: Any = None
    presence = Presence(redis, "rollout", "rollout-0", "")
    worker = RolloutWorker("run", queue, EngineServer(), unused, presence, max_num_seqs=8)
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(20):
            await away.has_refused.wait()
            queue.redis = redis
            while "weights" not in presence.record().waiting_for:
                assert not running.done(), running.exception()
                await asyncio.sleep(0.02)
    finally:
        await end([running], seconds=10)
    [pending] = await redis.xpending_range(stream, streams.GROUP_ROLLOUT, "-", "+", 10)
    assert pending["time_since_delivered"] >= HANDED_BACK_SECONDS * 1000, "it had taken it up"


class Panic(BaseException):
    """What a fault in a library written in Rust, such as a tokenizer, raises: no `Exception`."""


class PanickingSampler:
    async def sample(self, task: PromptTask) -> None:
        raise Panic("index out of bounds")


async def test_a_prompt_that_makes_a_library_panic_is_a_fault_and_does_not_come_back_for_ever(redis: Redis) -> None:
    queue = Queue(redis, streams.GROUP_ROLLOUT, "rollout-0")
    await queue.publish(streams.prompts("run"), make_group(0).group.task)
    server, sampler = EngineServer(), PanickingSampler()
    server.version = 0
    server._move("serving")
    worker = RolloutWorker("run", queue, server, sampler, Presence(redis, "rollout", "rollout-0", ""), max_num_seqs=8)  # type: ignore[arg-type]
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(20):
            while not (found := await redis.xrange(streams.completions("run"))):
                await asyncio.sleep(0.02)
    finally:
        await end([running], seconds=10)
    group = codec.decode(found[0][1][b"m"], CompletedGroup)
    assert [rollout.status for rollout in group.rollouts] == ["infrastructure_fault"] * 3
    assert "index out of bounds" in group.rollouts[0].fault
    assert await redis.xlen(streams.prompts("run")) == 0
