"""The probe: how the untrained model does on training questions, and what a demonstration adds.

Questions are sampled as in training, then those with a correct rollout once more with the teacher's prompt. Everything
goes through the ring as evaluations do, so retries, faults and crashes are handled alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean

import msgspec

from services.contracts import streams
from services.contracts.evaluations.tasks import usable_samples
from services.contracts.events import ProbeFinished
from services.contracts.messages import PromptTask, Question, ScoredGroup
from services.contracts.run_config import RunConfig
from services.learner.groups.feeder import train_sampling
from services.learner.groups.questions import Mixture
from services.learner.objectives.teacher_prompt import shown_response, teacher_text
from services.learner.program.evaluate import collect_judged
from services.runtime.queue.queue import Delivery, Queue

_RESULT = "probe_result"


@dataclass(frozen=True, slots=True)
class Sampled:
    """The usable rollouts of one question."""

    correct: list[bool]
    texts: list[str]
    lengths: list[int]
    """Response tokens."""
    num_truncated: int
    num_well_formed: int

    @property
    def demonstration(self) -> int | None:
        """Index of the first correct rollout, if there is one."""
        return self.correct.index(True) if True in self.correct else None


class Probe:
    """Feeds the probe's tasks and waits for all of them."""

    def __init__(self, queue: Queue, run_id: str, config: RunConfig, questions: Mixture) -> None:
        assert config.probe is not None
        self._queue, self._run_id, self._config = queue, run_id, config
        count = min(config.probe.num_questions, len(questions))
        self._questions = [questions.at(number) for number in range(count)]
        self.num_done = 0
        self.num_tasks = count

    async def run(self) -> ProbeFinished:
        """Probe the model. A repeated call after a crash reuses what was fed, judged or finished before."""
        stored = await self._queue.redis.hget(streams.feeder(self._run_id), _RESULT)
        if stored is not None:
            return msgspec.json.decode(stored, type=ProbeFinished)
        started = time.monotonic()
        plain = await self._sample("plain", dict(enumerate(self._questions)))
        base = {delivery.message.group.task.sequence: usable(delivery.message, self._config) for delivery in plain}
        taught = await self._sample("taught", self._taught_questions(base))
        shown = {delivery.message.group.task.sequence: usable(delivery.message, self._config) for delivery in taught}
        faults = sum(usable_samples(item.message).count(False) for item in (*plain, *taught))
        result = msgspec.structs.replace(
            summarize(base, shown, self._run_id, self._config),
            at=time.time(),
            num_faults=faults,
            seconds=time.monotonic() - started,
        )
        await self._queue.redis.hset(streams.feeder(self._run_id), _RESULT, msgspec.json.encode(result))
        await self._queue.acknowledge([*plain, *taught])
        return result

    def _taught_questions(self, base: dict[int, Sampled]) -> dict[int, Question]:
        """The questions that have a correct rollout, as the teacher reads them."""
        taught = {}
        for index, sampled in base.items():
            if (shown := sampled.demonstration) is not None:
                question = self._questions[index]
                prompt = teacher_text(question.prompt, sampled.texts[shown], None)
                taught[index] = msgspec.structs.replace(question, prompt=prompt)
        return taught

    async def _sample(self, name: str, questions: dict[int, Question]) -> list[Delivery[ScoredGroup]]:
        """Consumes `evaluated`; waits for the judged groups of these questions."""
        tasks = [self._task(name, index, question) for index, question in questions.items()]
        self.num_tasks = len(tasks)
        await self._queue.feed(streams.prompts(self._run_id), streams.feeder(self._run_id), f"probe:{name}", 0, tasks)
        return await collect_judged(self._queue, self._run_id, tasks, self._progress)

    def _progress(self, num_done: int) -> None:
        self.num_done = num_done

    def _task(self, name: str, index: int, question: Question) -> PromptTask:
        return PromptTask(
            run_id=self._run_id,
            group_id=f"probe-{name}-{index}",
            sequence=index,
            purpose="evaluation",
            question=question,
            sampling=train_sampling(self._config),
            min_weight_version=0,
            step=0,
            max_prompt_tokens=self._config.rollout.max_prompt_tokens,
            fed_at=time.time(),
        )


def usable(group: ScoredGroup, config: RunConfig) -> Sampled:
    """The group's rollouts without those that an infrastructure fault spoiled."""
    rows = [
        (rollout, verdict)
        for rollout, verdict, ok in zip(group.group.rollouts, group.verdicts, usable_samples(group), strict=True)
        if ok
    ]
    return Sampled(
        correct=[verdict.correct for _, verdict in rows],
        texts=[shown_response(rollout, config) for rollout, _ in rows],
        lengths=[len(rollout.token_ids) for rollout, _ in rows],
        num_truncated=sum(rollout.finish_reason == "length" for rollout, _ in rows),
        num_well_formed=sum(verdict.format_ok for _, verdict in rows),
    )


def summarize(base: dict[int, Sampled], taught: dict[int, Sampled], run_id: str, config: RunConfig) -> ProbeFinished:
    """The probe's numbers from the rollouts of each question, without and with the teacher's prompt."""
    sampled = [item for item in base.values() if item.correct]
    lengths = sorted(length for item in sampled for length in item.lengths)
    pairs = [(_others(base[index]), item.correct) for index, item in taught.items() if item.correct]
    pairs = [(without, correct) for without, correct in pairs if without]
    return ProbeFinished(
        run_id=run_id,
        at=0.0,
        num_questions=len(sampled),
        num_samples=config.rollout.group_size,
        accuracy=_mean([fmean(item.correct) for item in sampled]),
        pass_at_k=_mean([any(item.correct) for item in sampled]),
        all_correct_ratio=_mean([all(item.correct) for item in sampled]),
        mixed_ratio=_mean([any(item.correct) and not all(item.correct) for item in sampled]),
        all_wrong_ratio=_mean([not any(item.correct) for item in sampled]),
        well_formed_ratio=sum(item.num_well_formed for item in sampled) / max(1, len(lengths)),
        truncated_ratio=sum(item.num_truncated for item in sampled) / max(1, len(lengths)),
        response_tokens_mean=_mean(lengths),
        response_tokens_p95=lengths[ceil(0.95 * len(lengths)) - 1] if lengths else 0,
        num_taught_questions=len(pairs),
        taught_accuracy=_mean([fmean(correct) for _, correct in pairs]),
        untaught_accuracy=_mean([fmean(without) for without, _ in pairs]),
    )


def _others(item: Sampled) -> list[bool]:
    """Correctness of the rollouts other than the demonstration."""
    shown = item.demonstration
    return [correct for index, correct in enumerate(item.correct) if index != shown]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
