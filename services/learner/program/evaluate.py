"""Evaluation through the ring: avg@k and pass@k of the validation questions at one weight version.

Training waits during an evaluation, so all samples come from that version; prompts for the next steps may be in
progress behind them. The result is stored in Redis with the feeding cursor, so that a learner that repeats the step
after a crash reports the same result instead of sampling again with other weights.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import msgspec
from redis.asyncio import Redis

from services.contracts import streams
from services.contracts.data import VALIDATION
from services.contracts.evaluations.statistics import pass_at_k
from services.contracts.evaluations.tasks import evaluation_task, setting_of, usable_samples
from services.contracts.events import EvaluationFinished, QuestionCount
from services.contracts.messages import PromptTask, Question, ScoredGroup
from services.contracts.questions.source import ValidationSet
from services.contracts.run_config import RunConfig
from services.runtime.queue.lost import feed_lost
from services.runtime.queue.queue import Delivery, Queue

SILENCE_SECONDS = 10.0
"""Time without a result after which to look for lost groups."""
_RESULT = "evaluation_result:"
"""Of the main set, whose accuracies decide which checkpoints are kept."""
_OTHER_RESULT = "evaluation_of:"


class Evaluator:
    """Feeds the evaluation tasks of one validation set and waits for all of them."""

    def __init__(
        self,
        queue: Queue,
        run_id: str,
        config: RunConfig,
        questions: Sequence[Question],
        first_step: int = 0,
        validation: ValidationSet | None = None,
        mark: str = "",
    ) -> None:
        """`first_step` is the weight version that the run starts from; above 0 for a fork. `validation` is the set's
        section, None for one without settings. `mark` tells the names of its tasks and results from those of the
        run's main set, which has none."""
        self._first_step = first_step
        self._queue = queue
        self._run_id = run_id
        self._config = config
        self._questions = questions[: config.evaluation.max_questions]
        self._set, self._mark = validation, mark
        self._num_samples = self._own("num_samples")
        self.num_done = 0
        self.num_tasks = len(self._questions)

    @property
    def enabled(self) -> bool:
        return bool(self._questions)

    @property
    def split(self) -> str:
        return VALIDATION if self._set is None else self._set.label

    def _own(self, field: str) -> Any:
        return setting_of(self._config, self._set, field)

    def due(self, step: int) -> bool:
        """Whether to evaluate after `step` (the first step: before training)."""
        section, last, every = self._config.evaluation, self._config.training.steps, self._own("every_steps")
        if not self.enabled:
            return False
        if step == self._first_step:
            return section.before_training
        if step == last:
            return section.after_training
        return every is not None and step % every == 0

    def progress(self, step: int) -> str:
        """How far the evaluation of `step` is, in words."""
        of = f" on {self.split}" if self._mark else ""
        return f"evaluation of step {step}{of}: {self.num_done} of {self.num_tasks}"

    async def run(self, step: int) -> EvaluationFinished:
        """Evaluate the weights of version `step`. A repeated call reuses what was fed, judged or finished before."""
        started = time.monotonic()
        self.num_done = 0
        field = f"{_RESULT}{step}" if not self._mark else f"{_OTHER_RESULT}{self._mark}{step}"
        stored = await self._queue.redis.hget(streams.feeder(self._run_id), field)
        if stored is not None:
            return msgspec.json.decode(stored, type=EvaluationFinished)
        tasks = [self._task(index, step) for index in range(self.num_tasks)]
        await self._queue.feed(
            streams.prompts(self._run_id), streams.feeder(self._run_id), f"evaluation:{self._mark}{step}", 0, tasks
        )
        deliveries = await collect_judged(self._queue, self._run_id, tasks, self._progress)
        judged = [delivery.message for delivery in deliveries]
        result = summarise(judged, self._run_id, step, self._num_samples, self.split)
        result = msgspec.structs.replace(result, at=time.time(), seconds=time.monotonic() - started)
        await self._queue.redis.hset(streams.feeder(self._run_id), field, msgspec.json.encode(result))
        await self._queue.acknowledge(deliveries)
        return result

    def _progress(self, num_done: int) -> None:
        self.num_done = num_done

    def _task(self, index: int, step: int) -> PromptTask:
        return evaluation_task(
            self._config,
            self._run_id,
            self._set,
            self._questions[index],
            group_id=f"evaluation-{self._mark}{step}-{index}",
            sequence=index,
            version=step,
        )


def evaluators(
    queue: Queue,
    run_id: str,
    config: RunConfig,
    sets: Sequence[tuple[ValidationSet, list[Question]]],
    first_step: int,
) -> list[Evaluator]:
    """One for each validation set, the main one first."""
    return [
        Evaluator(queue, run_id, config, questions, first_step, item, f"{item.label}:" if number else "")
        for number, (item, questions) in enumerate(sets)
    ]


async def collect_judged(
    queue: Queue, run_id: str, tasks: Sequence[PromptTask], progress: Callable[[int], None]
) -> list[Delivery[ScoredGroup]]:
    """Consumes `evaluated`; waits until every task is judged or given up. Feeds lost tasks again.

    `progress` is told how many are judged. The caller acknowledges what is returned, once it has used it.
    """
    stream = streams.evaluated(run_id)
    wanted = {task.group_id: task for task in tasks}
    judged: dict[str, Delivery[ScoredGroup]] = {}
    given_up: set[str] = set()
    foreign: list[Delivery[ScoredGroup]] = []
    arrived = await queue.own_pending(stream, ScoredGroup)
    silent_since, num_dead = time.monotonic(), queue.num_dead_letters
    while True:
        for delivery in arrived:
            group = delivery.message.group.task.group_id
            if group in wanted and group not in judged:
                judged[group] = delivery
            else:
                foreign.append(delivery)
        await queue.acknowledge(foreign)
        foreign.clear()
        progress(len(judged))
        outstanding = [task for group, task in wanted.items() if group not in judged and group not in given_up]
        if not outstanding:
            return [judged[group] for group in wanted if group in judged]
        silent_since = time.monotonic() if arrived else silent_since
        if time.monotonic() - silent_since > SILENCE_SECONDS or queue.num_dead_letters != num_dead:
            num_dead = queue.num_dead_letters
            given_up |= (await feed_lost(queue, run_id, stream, outstanding))[1].keys()
            silent_since = time.monotonic()
        arrived = await queue.receive([stream], ScoredGroup, count=64, block_seconds=0.5)
        if not arrived:
            in_hand = {delivery.message_id for delivery in judged.values()}
            arrived = await queue.missed(stream, ScoredGroup, in_hand)
        await asyncio.sleep(0)


def summarise(
    groups: Sequence[ScoredGroup], run_id: str, step: int, num_samples: int, split: str = VALIDATION
) -> EvaluationFinished:
    """avg@k and pass@k. Leaves out samples with an infrastructure fault, and questions that have no other samples."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    questions: list[QuestionCount] = []
    lengths: list[int] = []
    truncated: list[float] = []
    num_faults = 0
    for group in groups:
        usable = usable_samples(group)
        num_faults += usable.count(False)
        correct = [float(verdict.correct) for verdict, ok in zip(group.verdicts, usable, strict=True) if ok]
        if not correct:
            continue
        asked = group.group.task.question
        by_kind[asked.kind].append(fmean(correct))
        questions.append(QuestionCount(asked.id, asked.kind, len(correct), int(sum(correct))))
        rollouts = [rollout for rollout, ok in zip(group.group.rollouts, usable, strict=True) if ok]
        lengths += [len(rollout.token_ids) for rollout in rollouts]
        truncated += [float(rollout.finish_reason == "length") for rollout in rollouts]
    every = [value for values in by_kind.values() for value in values]
    return EvaluationFinished(
        run_id=run_id,
        at=0.0,
        step=step,
        split=split,
        num_questions=len(every),
        num_samples=num_samples,
        accuracy=_mean(every),
        pass_at_k=pass_at_k([(item.num_samples, item.num_correct) for item in questions], num_samples),
        accuracy_by_kind={kind: fmean(values) for kind, values in by_kind.items()},
        response_tokens_mean=_mean(lengths),
        truncated_ratio=_mean(truncated),
        num_faults=num_faults,
        questions=questions,
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


async def stored_accuracies(redis: Redis, run_id: str) -> dict[int, float]:
    """Accuracy on the main validation set by step, for the evaluations that this run has finished."""
    values: Any = await redis.hgetall(streams.feeder(run_id))
    results = (value for name, value in values.items() if name.decode().startswith(_RESULT))
    decoded = (msgspec.json.decode(value, type=EvaluationFinished) for value in results)
    return {result.step: result.accuracy for result in decoded}
