"""The learner's side: its own feeder, batcher and ledger, and a trainer that takes time.

The loop is the training leader's (`services/learner/program/leader.py`) without a model: groups are taken in feeding
order, weights of step s are version s, groups are acknowledged once a checkpoint that contains their step is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from benchmarks.simulation.engine import response_lengths
from benchmarks.simulation.scenario import Scenario
from services.contracts import streams
from services.contracts.messages import Question, ScoredGroup
from services.contracts.run_config import RunConfig, parse_run_config
from services.learner.connections.redis_link import CONSUMER
from services.learner.groups.batcher import Batcher
from services.learner.groups.feeder import Feeder
from services.learner.groups.ledger import Ledger
from services.learner.groups.questions import Mixture
from services.runtime.process import end
from services.runtime.queue.queue import Delivery, Queue

PROMPT = "A question about as long as those of the paper's benchmarks. " * 8


def run_config(scenario: Scenario) -> RunConfig:
    return parse_run_config(
        {
            "name": "simulation",
            "model": {"path": "none"},
            "data": {"train": "none"},
            "rollout": {
                "group_size": scenario.group_size,
                "max_response_tokens": scenario.max_tokens,
                "max_num_seqs": scenario.max_num_seqs,
            },
            "training": {
                "steps": scenario.steps,
                "prompts_per_step": scenario.prompts_per_step,
                "max_staleness": scenario.max_staleness,
                "seed": scenario.seed,
            },
        }
    )


@dataclass(slots=True)
class TrainedStep:
    """What one step was made of."""

    step: int
    sequences: list[int]
    ended_at: float
    waited: float
    tokens: int
    """Timed tokens, not the fewer ones that the messages carry."""
    ages: dict[int, int]
    """Carried tokens by age in versions."""


class Learner:
    """One run's learner, from step 0 to the last, crashes included."""

    def __init__(
        self, scenario: Scenario, redis: Redis, run_id: str, push: Callable[[int], Coroutine[Any, Any, None]]
    ) -> None:
        self._scenario = scenario
        self._config = run_config(scenario)
        self._redis = redis
        self._queue = Queue(redis, streams.GROUP_LEARNER, CONSUMER)
        self._run_id = run_id
        self._push = push
        self._published = 0
        self._num_untrained = 0
        self._credit = asyncio.Event()
        self._arrivals: asyncio.Queue[Delivery[ScoredGroup]] = asyncio.Queue()
        self._writer = asyncio.Lock()
        self._jobs: set[asyncio.Task[None]] = set()
        self._durable = (0, Ledger())
        """Step and ledger of the newest checkpoint."""
        self.steps: list[TrainedStep] = []
        """Every step trained, also those that a crash undid and that were trained again."""
        self.ledger = Ledger()
        self.fed = 0
        self.max_buffered = 0
        """Most groups that waited for their turn."""

    async def run(self) -> None:
        """Consumes scored groups; produces prompts and versions; ends when the last step's checkpoint is durable."""
        crashes = set(self._scenario.learner_crashes)
        while not await self._life(crashes):
            pass

    async def _life(self, crashes: set[int]) -> bool:
        """From the newest checkpoint to the end, or to a crash (False)."""
        step, ledger = self._durable
        questions = [Question(id=str(n), kind="mcq", prompt=PROMPT, answer="B") for n in range(1000)]
        feeder = Feeder(self._queue, self._run_id, self._config, Mixture.of(questions, self._config.training.seed))
        await feeder.read_cursor()
        batcher = Batcher.for_run(self._config, ledger.copy())
        self._arrivals = asyncio.Queue()
        for delivery in await self._queue.own_pending(streams.scored(self._run_id), ScoredGroup):
            self._arrivals.put_nowait(delivery)
        loops = [asyncio.create_task(self._feed(feeder)), asyncio.create_task(self._receive())]
        try:
            while step < self._scenario.steps:
                step += 1
                self.steps.append(await self._train(step, batcher))
                if step in crashes:
                    crashes.remove(step)
                    return False
                self._submit(step, batcher)
            await asyncio.gather(*self._jobs)
        finally:
            await end(loops)
        self.ledger, self.fed = batcher.ledger, feeder.fed
        return True

    async def _feed(self, feeder: Feeder) -> None:
        while True:
            self._credit.clear()
            await feeder.feed(self._published, self._num_untrained)
            await self._credit.wait()

    async def _receive(self) -> None:
        stream = streams.scored(self._run_id)
        while True:
            for delivery in await self._queue.receive([stream], ScoredGroup, count=64, block_seconds=60.0):
                self._arrivals.put_nowait(delivery)

    async def _train(self, step: int, batcher: Batcher) -> TrainedStep:
        """Wait for the batch, then train on it."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while (batch := batcher.take(step)) is None:
            if batcher.ledger.num_untrained != self._num_untrained:
                self._num_untrained = batcher.ledger.num_untrained
                self._credit.set()
            delivery = await self._arrivals.get()
            while True:
                batcher.offer(delivery)
                if self._arrivals.empty():
                    break
                delivery = self._arrivals.get_nowait()
            self.max_buffered = max(self.max_buffered, batcher.num_waiting)
        tokens = sum(sum(response_lengths(self._scenario, group.group.task.group_id)) for group in batch.groups)
        waited = loop.time() - started
        await asyncio.sleep(tokens / self._scenario.learner_tokens_a_second)
        return TrainedStep(
            step=step,
            sequences=[group.group.task.sequence for group in batch.groups],
            ended_at=loop.time(),
            waited=waited,
            tokens=tokens,
            ages=token_ages(batch.groups, step - 1),
        )

    def _submit(self, step: int, batcher: Batcher) -> None:
        """Publish, and write the checkpoint if one is due, while training continues."""
        due = step % self._scenario.checkpoint_every == 0 or step == self._scenario.steps
        settled = batcher.take_settled() if due else []
        boundary = batcher.boundary
        job = asyncio.create_task(self._write(step, boundary if due else None, settled))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _write(self, step: int, boundary: Ledger | None, settled: list[Delivery[ScoredGroup]]) -> None:
        async with self._writer:
            if step > self._published:
                await asyncio.sleep(self._scenario.publish_seconds)
                await self._redis.hset(streams.weights(self._run_id), "version", str(step))
                self._published = step
                self._credit.set()
                asyncio.get_running_loop().create_task(self._push(step))
            if boundary is not None:
                self._durable = (step, boundary)
                await self._queue.acknowledge(settled)


def token_ages(groups: list[ScoredGroup], version: int) -> dict[int, int]:
    """Carried tokens by age in versions, before training on weights of `version`."""
    ages: dict[int, int] = {}
    for group in groups:
        for rollout in group.group.rollouts:
            for span in rollout.weight_versions:
                age = max(0, version - span.version)
                ages[age] = ages.get(age, 0) + span.end - span.start
    return ages
