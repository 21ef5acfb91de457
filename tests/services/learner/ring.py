"""The ring's other side for learner tests: answers prompts with rollouts and verdicts that depend on the task alone.

Two runs of the same configuration therefore see the same scored groups, whatever the timing, and must end bitwise
equal.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from services.contracts import codec, events, streams
from services.contracts.arrays import LogProbs, TokenIds
from services.contracts.messages import CompletedGroup, PromptTask, Rollout, ScoredGroup, Verdict, VersionSpan
from services.contracts.turns import ASLEEP, read_turn
from services.runtime.queue.queue import Queue
from tests.conftest import ROOT

POLICY = ROOT / "examples" / "embedded" / "policy"
DATA = ROOT / "examples" / "embedded" / "data"
VOCABULARY: int = json.loads((POLICY / "config.json").read_text())["vocab_size"]
Change = Callable[[ScoredGroup], ScoredGroup]


def run_values(**sections: dict[str, Any]) -> dict[str, Any]:
    """A small run, updated with the given sections."""
    values: dict[str, Any] = {
        "name": "ring",
        "model": {"path": str(POLICY), "dtype": "float32"},
        "data": {"train": str(DATA / "train.jsonl")},
        "rollout": {"group_size": 4, "max_prompt_tokens": 64, "max_response_tokens": 32},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "training": {"steps": 4, "prompts_per_step": 4, "max_staleness": 1},
        "evaluation": {"every_steps": None, "before_training": False, "after_training": False},
        "checkpoint": {"every_steps": 2},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values


class FakeRing:
    """Plays rollout servers and verifiers in one coroutine."""

    def __init__(
        self, redis: Redis, run_id: str, change: Change = lambda group: group, *, shares_gpu: bool = False
    ) -> None:
        self.redis = redis
        self.run_id = run_id
        self.change = change
        """May alter a group before it is published."""
        self.served: list[str] = []
        self.shares_gpu = shares_gpu
        self.versions_seen: dict[str, int] = {}
        """Published version at the time of serving, by group id."""
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(POLICY)

    async def run(self) -> None:
        queue = Queue(self.redis, streams.GROUP_ROLLOUT, "fake")
        prompts = streams.prompts(self.run_id)
        held = await queue.own_pending(prompts, PromptTask)
        while True:
            if self.shares_gpu and not await self._has_turn():
                await asyncio.sleep(0.01)
                continue
            held += await queue.receive([prompts], PromptTask, count=16, block_seconds=0.05)
            version = int(await self.redis.hget(streams.weights(self.run_id), "version") or 0)
            ready = [delivery for delivery in held if delivery.message.min_weight_version <= version]
            held = [delivery for delivery in held if delivery.message.min_weight_version > version]
            random.shuffle(ready)  # arrival order must not matter
            for delivery in ready:
                task = delivery.message
                target = streams.scored if task.purpose == "train" else streams.evaluated
                self.served.append(task.group_id)
                self.versions_seen[task.group_id] = version
                await queue.forward(delivery, target(self.run_id), self.change(self.answer(task)))

    async def _has_turn(self) -> bool:
        """Frees the GPU at the learner's request."""
        turn = read_turn(await self.redis.hgetall(streams.turn(self.run_id)))
        if turn.request and turn.asleep != turn.request:
            await self.redis.hset(streams.turn(self.run_id), ASLEEP, turn.request)
        return turn.is_servers

    def answer(self, task: PromptTask) -> ScoredGroup:
        dice = random.Random(task.group_id)
        messages = [{"role": "user", "content": task.question.prompt}]
        if task.question.system:
            messages.insert(0, {"role": "system", "content": task.question.system})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        rollouts, verdicts = [], []
        for _ in range(task.sampling.num_samples):
            length = dice.randint(1, task.sampling.max_response_tokens)
            tokens = [dice.randrange(4, VOCABULARY) for _ in range(length)]
            correct = dice.random() < 0.4
            rollouts.append(
                Rollout(
                    status="ok",
                    text=self.tokenizer.decode(tokens),
                    token_ids=TokenIds(tokens),
                    logprobs=LogProbs([-5.0 - dice.random() for _ in tokens]),
                    weight_versions=[VersionSpan(task.min_weight_version, 0, length)],
                )
            )
            verdicts.append(Verdict(status="ok", reward=float(correct), correct=correct))
        group = CompletedGroup(
            task=task, prompt_token_ids=TokenIds(prompt), rollouts=rollouts, server="fake", seconds=0.1
        )
        return ScoredGroup(group=group, verdicts=verdicts, verifier="fake")


async def put_run(redis: Redis, run_id: str, values: dict[str, Any]) -> None:
    await redis.set(streams.config(run_id), msgspec.json.encode(values))
    await redis.set(streams.desired(run_id), "running")


def bytecode_cached(variables: Mapping[str, str]) -> dict[str, str]:
    """Child processes import the same heavy libraries repeatedly; let them cache the bytecode."""
    kept = {name: value for name, value in variables.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "turnout-tests-bytecode")}


class EventLog:
    """Reads the run's events as they arrive."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.events: list[Any] = []
        self._last = "0"

    async def read(self) -> list[Any]:
        for message_id, fields in await self.redis.xrange(streams.EVENTS, min=f"({self._last}"):
            self._last = message_id.decode()
            self.events.append(codec.decode_any(fields[b"m"]))
        return self.events

    async def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in await self.read() if isinstance(event, kind)]

    async def wait_for(self, condition: Callable[[list[Any]], bool], seconds: float = 120.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition(await self.read()):
                await asyncio.sleep(0.02)

    async def states(self) -> list[str]:
        return [event.state for event in await self.of(events.RunStateChanged)]
