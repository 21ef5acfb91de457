"""The sampling loop during outages of the queue server, and with hostile messages. Without an engine, which these tests
do not need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.contracts import codec, streams
from services.contracts.messages import CompletedGroup, DeadLetter, PromptTask, Rollout
from services.rollout.allowance import Allowance
from services.rollout.sampling.worker import WAITS_FOR_ALLOWANCE, RolloutWorker
from services.rollout.vllm.server import EngineServer
from services.runtime.presence import Presence
from services.runtime.process import end
from services.runtime.queue.queue import HANDED_BACK_SECONDS, Queue
from tests.faults import Away, KillableValkey
from tests.services.learner.conftest import make_group


async def test_a_worker_that_starts_during_an_outage_resumes_its_own_groups(redis: Redis) -> None:
    """An outage may begin while the engine starts. If its error ended the worker, the server would keep its groups and
    appear ready indefinitely."""
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
    assert pending["time_since_delivered"] >= HANDED_BACK_SECONDS * 1000, "the worker had resumed it"


class Panic(BaseException):
    """Raised by a panic in a Rust library, such as a tokenizer; not an `Exception`."""


class PlayedSampler:
    """Runs `act` instead of sampling."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.num_calls = 0

    async def sample(self, task: PromptTask) -> tuple[list[int], list[Rollout]]:
        self.num_calls += 1
        self.act()
        group = make_group(task.sequence).group
        return group.prompt_token_ids.tolist(), group.rollouts


@asynccontextmanager
async def serving(
    redis: Redis, sampler: Any, version: int = 0, allowance: Allowance | None = None
) -> AsyncIterator[tuple[RolloutWorker, asyncio.Task[None]]]:
    """A worker with an engine that has weights of `version`."""
    server = EngineServer()
    server.version = version
    server._move("serving")
    queue = Queue(redis, streams.GROUP_ROLLOUT, "rollout-0")
    presence = Presence(redis, "rollout", "rollout-0", "")
    worker = RolloutWorker("run", queue, server, sampler, presence, max_num_seqs=24, allowance=allowance)
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(60):
            yield worker, running
    finally:
        await end([running], seconds=10)


async def completed(
    redis: Redis, sampler: PlayedSampler, meanwhile: Callable[[], None] = lambda: None
) -> CompletedGroup:
    """The group that a worker makes of the only prompt."""
    queue = Queue(redis, streams.GROUP_ROLLOUT, "rollout-0")
    await queue.publish(streams.prompts("run"), make_group(0).group.task)
    async with serving(redis, sampler):
        await asyncio.to_thread(meanwhile)
        while not (found := await redis.xrange(streams.completions("run"))):
            await asyncio.sleep(0.02)
    assert await redis.xlen(streams.prompts("run")) == 0
    return codec.decode(cast(Any, found)[0][1][b"m"], CompletedGroup)


async def test_a_prompt_that_makes_a_library_panic_is_a_fault_and_does_not_return(redis: Redis) -> None:
    def panic() -> None:
        raise Panic("index out of bounds")

    group = await completed(redis, PlayedSampler(panic))
    assert [rollout.status for rollout in group.rollouts] == ["infrastructure_fault"] * 3
    assert "index out of bounds" in group.rollouts[0].fault


async def test_work_that_is_limited_waits_until_the_allowance_is_open(redis: Redis) -> None:
    allowance, sampler = Allowance(clock=lambda: 0.0), PlayedSampler(lambda: None)
    allowance.is_limited = True
    allowance._saved = 0.0
    queue = Queue(redis, streams.GROUP_ROLLOUT, "rollout-0")
    await queue.publish(streams.prompts("run"), make_group(0).group.task)
    async with serving(redis, sampler, allowance=allowance) as (worker, _):
        while worker._presence.record().waiting_for != WAITS_FOR_ALLOWANCE:
            await asyncio.sleep(0.02)
        assert sampler.num_calls == 0
        allowance.is_limited = False
        while not await redis.xlen(streams.completions("run")):
            await asyncio.sleep(0.02)


async def test_a_group_that_was_sampled_during_an_outage_is_published_after_it(tmp_path: Path) -> None:
    """Long responses take minutes, and an outage must not discard them."""
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


PROMPTS = streams.prompts("run")


class Watched(PlayedSampler):
    """Records which groups are sampled at the same time."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.now: set[int] = set()
        self.together: dict[int, set[int]] = {}

    async def sample(self, task: PromptTask) -> tuple[list[int], list[Rollout]]:
        self.now.add(task.sequence)
        await asyncio.sleep(0.05)
        self.together[task.sequence] = set(self.now)
        self.now.remove(task.sequence)
        return await super().sample(task)


async def made_suspect(redis: Redis, *tasks: PromptTask) -> None:
    """Put tasks on the stream that have already killed two servers."""
    queue = Queue(redis, streams.GROUP_ROLLOUT, "rollout-dead")
    for task in tasks:
        await queue.publish(PROMPTS, task)
    await queue.hand_back(await queue.receive([PROMPTS], PromptTask, count=100), after_fault=True)
    await queue.hand_back(await queue.resume(PROMPTS, PromptTask), after_fault=True)


def asking_for(version: int, sequence: int) -> PromptTask:
    return msgspec.structs.replace(make_group(sequence).group.task, min_weight_version=version)


async def until_completed(redis: Redis, number: int) -> None:
    while await redis.xlen(streams.completions("run")) < number:
        await asyncio.sleep(0.02)


async def test_a_task_without_samples_is_a_dead_letter_and_the_worker_continues(redis: Redis) -> None:
    queue = Queue(redis, "feeder", "learner")
    tasks = [make_group(sequence).group.task for sequence in range(3)]
    nothing = msgspec.structs.replace(tasks[1].sampling, num_samples=0)
    for task in (tasks[0], msgspec.structs.replace(tasks[1], sampling=nothing), tasks[2]):
        await queue.publish(PROMPTS, task)
    async with serving(redis, Watched()) as (_, running):
        await until_completed(redis, 2)
        assert not running.done()
    [(_, fields)] = cast(Any, await redis.xrange(streams.dead("run")))
    assert "num_samples" in codec.decode(fields[b"m"], DeadLetter).reason


async def test_suspects_are_sampled_one_by_one_with_nothing_else(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that wait for newer weights are handed back meanwhile and do not block a suspect, even if suspects too."""
    monkeypatch.setattr("services.rollout.sampling.worker.TOUCH_SECONDS", 0.02)
    await made_suspect(redis, asking_for(9, 0), *(make_group(sequence).group.task for sequence in (1, 2)))
    queue, sampler = Queue(redis, "feeder", "learner"), Watched()
    for task in (asking_for(9, 3), *(make_group(sequence).group.task for sequence in range(4, 10))):
        await queue.publish(PROMPTS, task)
    async with serving(redis, sampler):
        await until_completed(redis, 8)
    assert max(len(others) for others in sampler.together.values()) > 1
    async with serving(redis, sampler, version=9):
        await until_completed(redis, 10)
    assert [sampler.together[sequence] for sequence in (0, 1, 2)] == [{0}, {1}, {2}]
    assert await redis.xlen(PROMPTS) == await redis.xlen(streams.dead("run")) == 0


@pytest.mark.parametrize(("has_fault", "times"), [(False, 0), (True, 1)])
async def test_a_hand_back_counts_after_a_fault_but_not_after_a_stop(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, has_fault: bool, times: int
) -> None:
    await Queue(redis, "feeder", "learner").publish(PROMPTS, asking_for(9, 0))
    async with serving(redis, Watched()) as (worker, running):
        while not worker._held:
            await asyncio.sleep(0.02)
        if has_fault:
            monkeypatch.setattr(worker, "_room", lambda: 1 // 0)
            await asyncio.wait([running])
    [entry] = await redis.xpending_range(PROMPTS, streams.GROUP_ROLLOUT, "-", "+", 1)
    assert entry["times_delivered"] == times
    assert entry["time_since_delivered"] >= HANDED_BACK_SECONDS * 1000


async def test_a_fault_of_ours_after_sampling_makes_a_dead_letter(redis: Redis) -> None:
    """A group whose task has ended is not touched, and would otherwise return every half minute."""
    sampler = Watched()
    monster = make_group(0).group.rollouts[0]
    impossible = msgspec.structs.replace(monster, text="\ud800")  # cannot be encoded

    async def sample(task: PromptTask) -> tuple[list[int], list[Rollout]]:
        return [1], [impossible] * 3

    sampler.sample = sample  # type: ignore[method-assign]
    await Queue(redis, "feeder", "learner").publish(PROMPTS, make_group(0).group.task)
    async with serving(redis, sampler):
        while not (found := await redis.xrange(streams.dead("run"))):
            await asyncio.sleep(0.02)
    assert "The rollout server failed on this prompt" in codec.decode(cast(Any, found)[0][1][b"m"], DeadLetter).reason
    assert await redis.xlen(PROMPTS) == 0
