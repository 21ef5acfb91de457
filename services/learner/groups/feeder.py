"""The prompt feeder: decides which train tasks may be fed, and feeds them.

`Credit` makes the decision, without input or output. Its rule bounds staleness by construction:

- With weights of version v published, tasks may be fed for training steps up to v + max_staleness (from 0), that is
  (v + 1 + max_staleness) * prompts_per_step tasks, plus one for every dropped or replaced group.
- Groups are decided in feeding order, so task number q is trained, if at all, in step (q - u) // prompts_per_step, u
  being the groups before q that were dropped or replaced. The feeder may not know all of them yet, so the step that it
  assigns is never too early, and a server samples the task with weights at most max_staleness versions older than that
  step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import msgspec

from services.contracts import streams
from services.contracts.messages import PromptTask, Question, Sampling
from services.contracts.run_config import RunConfig
from services.runtime.queue.queue import Queue

CURSOR = "train"
"""Field of the run's feeder hash: number of train groups fed, which is also the next sequence number."""
MAX_TASKS_A_CALL = 256


@dataclass(frozen=True, slots=True)
class Credit:
    """How far feeding may go."""

    prompts_per_step: int
    max_staleness: int
    steps: int

    def limit(self, published_version: int, num_untrained: int) -> int:
        """Total number of groups that may be fed while `published_version` is the newest published version."""
        groups_wanted = min(published_version + 1 + self.max_staleness, self.steps) * self.prompts_per_step
        return groups_wanted + num_untrained

    def step_of(self, sequence: int, num_untrained: int) -> int:
        """The training step (from 0) that task `sequence` is fed for, given the drops and replacements known so far."""
        return max(0, sequence - num_untrained) // self.prompts_per_step

    def min_weight_version(self, step: int) -> int:
        return max(0, step - self.max_staleness)


def train_sampling(config: RunConfig) -> Sampling:
    rollout = config.rollout
    return Sampling(
        num_samples=rollout.group_size,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        max_response_tokens=rollout.max_response_tokens,
        min_p=rollout.min_p or msgspec.UNSET,
        presence_penalty=rollout.presence_penalty or msgspec.UNSET,
    )


class Order(Protocol):
    """Which question a prompt asks."""

    @property
    def end(self) -> int:
        """Number of prompts whose question is known."""

    def at(self, sequence: int) -> Question:
        """The question of prompt `sequence`, from 0 and below `end`."""


class Feeder:
    """Feeds train tasks to `prompts`. The cursor is in Redis and moves atomically with the tasks."""

    def __init__(self, queue: Queue, run_id: str, config: RunConfig, questions: Order) -> None:
        training = config.training
        self.credit = Credit(training.prompts_per_step, training.max_staleness, training.steps)
        self.fed = 0
        """Train groups fed since the run began, as last read or written."""
        self._queue = queue
        self._run_id = run_id
        self._config = config
        self._questions = questions
        self._sampling = train_sampling(config)
        self._rewards = config.train_parts()

    async def read_cursor(self) -> int:
        value = await self._queue.redis.hget(streams.feeder(self._run_id), CURSOR)
        self.fed = int(value or 0)
        return self.fed

    @property
    def end(self) -> int:
        """Number of tasks that can be made: fed ones, or with a curriculum, fewer in a replay."""
        return min(self.fed, self._questions.end)

    async def feed(self, published_version: int, num_untrained: int) -> int:
        """Feed as many tasks as the credit allows. Returns their number."""
        before = self.fed
        limit = min(self.credit.limit(published_version, num_untrained), self._questions.end)
        while self.fed < limit:
            count = min(limit - self.fed, MAX_TASKS_A_CALL)
            tasks = [self.task(sequence, num_untrained) for sequence in range(self.fed, self.fed + count)]
            self.fed = await self._queue.feed(
                streams.prompts(self._run_id), streams.feeder(self._run_id), CURSOR, self.fed, tasks
            )
        return self.fed - before

    def task(self, sequence: int, num_untrained: int) -> PromptTask:
        step = self.credit.step_of(sequence, num_untrained)
        return PromptTask(
            run_id=self._run_id,
            group_id=f"train-{sequence}",
            sequence=sequence,
            purpose="train",
            question=self._questions.at(sequence),
            sampling=self._sampling,
            min_weight_version=self.credit.min_weight_version(step),
            step=step,
            max_prompt_tokens=self._config.rollout.max_prompt_tokens,
            fed_at=time.time(),
            rewards=self._rewards,
        )
