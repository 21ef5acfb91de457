"""Rollout servers and verifiers: the services' own loops (`RolloutWorker`, `Verifier`) around timed engines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, cast

from redis.asyncio import Redis

from benchmarks.simulation.engine import TimedEngine, TimedSampler
from benchmarks.simulation.scenario import SECONDS_AN_HOUR, Scenario
from services.contracts import streams
from services.contracts.messages import Question, RewardPart, Rollout, Verdict
from services.rollout.sampling.worker import IDLE_SECONDS, RolloutWorker
from services.runtime.presence import Presence
from services.runtime.process import end
from services.runtime.queue.queue import Held, Queue
from services.verifier.service import Verifier

__all__ = ["RolloutServer", "make_verifier"]
AWAY_FACTOR = 10


class RolloutServer:
    """One server's life: works, crashes, comes back with the newest published weights."""

    def __init__(self, scenario: Scenario, redis: Redis, run_id: str, number: int, totals: dict[str, Any]) -> None:
        self._scenario = scenario
        self._redis = redis
        self._run_id = run_id
        self._name = f"rollout-{number}"
        self._dice = random.Random(f"{scenario.seed} {self._name}")
        self._totals = totals
        self.engine: TimedEngine | None = None

    async def run(self) -> None:
        """Consumes prompts; produces completions; crashes at random moments. Runs until cancelled."""
        rate = self._scenario.failures_an_hour / SECONDS_AN_HOUR
        while True:
            version = int(await self._redis.hget(streams.weights(self._run_id), "version") or 0)
            self.engine = TimedEngine(self._scenario, version, self._totals["decoded"])
            worker = asyncio.create_task(self._worker(self.engine).run())
            try:
                await asyncio.wait([worker], timeout=self._dice.expovariate(rate) if rate else None)
                if worker.done():
                    worker.result()
            finally:
                self.engine.end()
                self.engine = None
                await end([worker])
            await self._away()

    async def _away(self) -> None:
        self._totals["crashes"] += 1
        seconds = self._scenario.restart_seconds
        if self._dice.random() < self._scenario.gone_share:
            seconds *= AWAY_FACTOR
        if seconds <= IDLE_SECONDS:
            return await asyncio.sleep(seconds)
        await asyncio.sleep(IDLE_SECONDS)
        await age_pending(self._redis, streams.prompts(self._run_id), streams.GROUP_ROLLOUT, self._name, IDLE_SECONDS)
        await asyncio.sleep(seconds - IDLE_SECONDS)

    def _worker(self, engine: TimedEngine) -> RolloutWorker:
        queue = KilledQueue(self._redis, streams.GROUP_ROLLOUT, self._name)
        presence = Presence(self._redis, "rollout", self._name, "")
        sampler = cast(Any, TimedSampler(self._scenario, engine))
        return RolloutWorker(self._run_id, queue, cast(Any, engine), sampler, presence, self._scenario.max_num_seqs)

    async def push(self, version: int) -> None:
        """A weight update, as the API's pusher makes it. A server that is away takes the weights when it is back."""
        engine = self.engine
        if engine is None or engine.version == version:
            return
        engine.pause()
        await asyncio.sleep(self._scenario.push_seconds)
        if engine is self.engine:
            engine.resume(version)


class KilledQueue(Queue):
    """The queue of a process that gets SIGKILL: it does not live to hand anything back."""

    async def hand_back(self, held: Sequence[Held], *, after_fault: bool = False) -> None:
        return


async def age_pending(redis: Redis, stream: str, group: str, consumer: str, seconds: float) -> None:
    """The server measures idleness in real time: tell it that this consumer has been silent for so long."""
    entries: Any = await redis.xpending_range(stream, group, "-", "+", count=100_000, consumername=consumer)
    ids = [entry["message_id"] for entry in entries]
    if ids:
        await redis.xclaim(
            stream, group, consumer, min_idle_time=0, message_ids=ids, idle=int(seconds * 1000), justid=True
        )


class TimedJudge:
    """Verdicts after some time: 40% are correct."""

    def __init__(self, scenario: Scenario) -> None:
        self._seconds = scenario.verify_seconds
        self._dice = random.Random(f"{scenario.seed} judge")

    def waiting_for(self) -> str:
        return ""

    async def verdict(self, question: Question, rollout: Rollout, rewards: Sequence[RewardPart] = ()) -> Verdict:
        await asyncio.sleep(self._dice.expovariate(1 / self._seconds))
        correct = self._dice.random() < 0.4
        return Verdict(status="ok", reward=float(correct), correct=correct, parsed_answer="B", format_ok=True)


def make_verifier(scenario: Scenario, redis: Redis, number: int) -> Verifier:
    name = f"verifier-{number}"
    queue = Queue(redis, streams.GROUP_VERIFIER, name)
    presence = Presence(redis, "verifier", name, "")
    return Verifier(queue, presence, cast(Any, TimedJudge(scenario)), max_groups=64)
