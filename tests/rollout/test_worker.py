"""The sampling loop while the queue server gives way. No engine: what it would do is not asked here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.contracts import codec, streams
from services.contracts.messages import CompletedGroup, PromptTask, Rollout
from services.rollout.server import EngineServer
from services.rollout.worker import RolloutWorker
from services.runtime.life import end
from services.runtime.queue import HANDED_BACK_SECONDS, Queue
from services.runtime.registry import Presence
from tests.faults import Away, KillableValkey
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


class PlayedSampler:
    """Does `act` in place of sampling."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.num_calls = 0

    async def sample(self, task: PromptTask) -> tuple[list[int], list[Rollout]]:
        self.num_calls += 1
        self.act()
        group = make_group(task.sequence).group
        return group.prompt_token_ids.tolist(), group.rollouts


async def completed(
    redis: Redis, sampler: PlayedSampler, meanwhile: Callable[[], None] = lambda: None
) -> CompletedGroup:
    """The one group that a worker makes of the one prompt there is."""
    queue = Queue(redis, streams.GROUP_ROLLOUT, "rollout-0")
    await queue.publish(streams.prompts("run"), make_group(0).group.task)
    server, played = EngineServer(), cast(Any, sampler)
    server.version = 0
    server._move("serving")
    worker = RolloutWorker("run", queue, server, played, Presence(redis, "rollout", "rollout-0", ""), max_num_seqs=8)
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(60):
            await asyncio.to_thread(meanwhile)
            while not (found := await redis.xrange(streams.completions("run"))):
                await asyncio.sleep(0.02)
    finally:
        await end([running], seconds=10)
    assert await redis.xlen(streams.prompts("run")) == 0
    return codec.decode(cast(Any, found)[0][1][b"m"], CompletedGroup)


async def test_a_prompt_that_makes_a_library_panic_is_a_fault_and_does_not_come_back_for_ever(redis: Redis) -> None:
    def panic() -> None:
        raise Panic("index out of bounds")

    group = await completed(redis, PlayedSampler(panic))
    assert [rollout.status for rollout in group.rollouts] == ["infrastructure_fault"] * 3
    assert "index out of bounds" in group.rollouts[0].fault


async def test_a_group_that_was_sampled_during_an_outage_is_published_after_it(tmp_path: Path) -> None:
    """Long responses take minutes; an outage throws none of them away."""
    server = KillableValkey(tmp_path)
    server.start()
    redis = Redis.from_url(server.url, retry=Retry(NoBackoff(), 0))
    sampler = PlayedSampler(server.kill)

    def restart() -> None:
        server.process.wait()
        server.start()

    try:
        group = await completed(redis, sampler, restart)
        assert (group.rollouts[0].status, sampler.num_calls) == ("ok", 1)
    finally:
        await redis.aclose()
        server.kill()
