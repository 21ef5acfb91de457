"""One simulated ring from its first prompt to its last checkpoint."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import structlog

from benchmarks.simulation import clock
from benchmarks.simulation.learner import Learner, TrainedStep
from benchmarks.simulation.meter import Meter
from benchmarks.simulation.scenario import Scenario
from benchmarks.simulation.servers import RolloutServer, make_verifier
from services.contracts import streams
from services.learner.groups.ledger import Ledger
from services.runtime.process import end

RUN = "simulation"
LOOK_SECONDS = 5.0
MAX_CONNECTIONS = 10_000


@dataclass(slots=True)
class Outcome:
    """What one ring did and cost."""

    scenario: Scenario
    steps: list[TrainedStep]
    ledger: Ledger
    fed: int
    crashes: int
    decoded_tokens: float
    """Tokens that engines decoded, those of lost work included."""
    virtual_seconds: float
    max_buffered: int
    largest: dict[str, int]
    """Most messages at once by stream, and on all together (`all`)."""
    left: dict[str, int]
    """Messages on each stream at the end."""
    meter: Meter

    @property
    def last_steps(self) -> list[TrainedStep]:
        """The steps that lasted: of a step trained again after a crash, the last time."""
        return list({step.step: step for step in self.steps}.values())

    @property
    def steady(self) -> list[TrainedStep]:
        """The steps between the ring's filling and the last prompt's feeding."""
        depth = self.scenario.max_staleness + 1
        return self.last_steps[depth:-depth]

    @property
    def steady_seconds(self) -> float:
        first = self.steady[0].step
        before = next(step for step in self.last_steps if step.step == first - 1)
        return self.steady[-1].ended_at - before.ended_at

    @property
    def throughput(self) -> float:
        """Trained tokens a second in steady steps, as a share of the slower side alone."""
        ideal = min(self.scenario.rollout_tokens_a_second, self.scenario.learner_tokens_a_second)
        return sum(step.tokens for step in self.steady) / self.steady_seconds / ideal

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the learner waited for groups."""
        return sum(step.waited for step in self.steady) / self.steady_seconds

    @property
    def groups_a_second(self) -> float:
        """Groups trained a second."""
        return sum(len(step.sequences) for step in self.steady) / self.steady_seconds

    @property
    def ages(self) -> dict[int, float]:
        """Share of the trained tokens by age in versions."""
        counts: dict[int, int] = {}
        for step in self.last_steps:
            for age, count in step.ages.items():
                counts[age] = counts.get(age, 0) + count
        total = sum(counts.values())
        return {age: counts[age] / total for age in sorted(counts)}


def simulate(scenario: Scenario, url: str) -> Outcome:
    """Play the scenario on the Redis server at `url`, which is emptied."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    meter = Meter(url)
    return clock.run(_play(scenario, url, meter))


async def _play(scenario: Scenario, url: str, meter: Meter) -> Outcome:
    redis: Any = clock.VirtualRedis.from_url(url, max_connections=MAX_CONNECTIONS)
    await redis.flushall()
    await redis.sadd(streams.RUNS, RUN)
    totals: dict[str, Any] = {"crashes": 0, "decoded": [0.0]}
    servers = [RolloutServer(scenario, redis, RUN, number, totals) for number in range(scenario.servers)]

    async def push(version: int) -> None:
        await asyncio.gather(*(server.push(version) for server in servers))

    learner = Learner(scenario, redis, RUN, push)
    largest: dict[str, int] = {}
    others = [server.run() for server in servers]
    others += [make_verifier(scenario, redis, number).run() for number in range(scenario.verifiers)]
    others += [_look(redis, meter, largest)]
    with meter.measuring():
        tasks = [asyncio.create_task(other) for other in others]
        await _until_done(learner, tasks)
        await end(tasks)
    left = await _depths(redis)
    await redis.aclose()
    return Outcome(
        scenario=scenario,
        steps=learner.steps,
        ledger=learner.ledger,
        fed=learner.fed,
        crashes=totals["crashes"],
        decoded_tokens=totals["decoded"][0],
        virtual_seconds=asyncio.get_running_loop().time(),
        max_buffered=learner.max_buffered,
        largest=largest,
        left=left,
        meter=meter,
    )


async def _until_done(learner: Learner, others: list[asyncio.Task[None]]) -> None:
    """Run the learner to its end; a service that ends before is a fault."""
    main = asyncio.create_task(learner.run())
    await asyncio.wait([main, *others], return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        if task.done():
            main.cancel()
            task.result()
    await main


async def _look(redis: Any, meter: Meter, largest: dict[str, int]) -> None:
    while True:
        meter.look()
        depths = await _depths(redis)
        for name, depth in {**depths, "all": sum(depths.values())}.items():
            largest[name] = max(largest.get(name, 0), depth)
        await asyncio.sleep(LOOK_SECONDS)


async def _depths(redis: Any) -> dict[str, int]:
    """Messages on each stream of the run, all at one moment."""
    names = [make(RUN) for make in (streams.prompts, streams.completions, streams.scored, streams.dead)]
    async with redis.pipeline(transaction=True) as pipe:
        for name in names:
            pipe.xlen(name)
        return {name.rsplit(":", 1)[1]: depth for name, depth in zip(names, await pipe.execute(), strict=True)}
