"""The probe: how the untrained model does on training questions, and what each kind of teacher information adds.

Questions are sampled as in training, then once more with each kind of information that they have in the prompt.
Everything goes through the ring as evaluations do, so retries, faults and crashes are handled alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import get_args

import msgspec

from services.contracts import streams
from services.contracts.evaluations.tasks import usable_samples
from services.contracts.events import Information, ProbeFinished, TeacherGap
from services.contracts.messages import PromptTask, Question, ScoredGroup
from services.contracts.rewards import deciding_parts
from services.contracts.run_config import RunConfig
from services.contracts.teacher_text import Wording, shown_solution, teacher_text
from services.learner.groups.feeder import train_sampling
from services.learner.groups.questions import Mixture
from services.learner.objectives.teacher_prompt import shown_response
from services.learner.program.evaluate import collect_judged
from services.runtime.queue.queue import Delivery, Queue

_RESULT = "probe_result"


@dataclass(frozen=True, slots=True)
class Sampled:
    """The usable rollouts of one question."""

    correct: list[bool]
    texts: list[str]
    feedback: list[str]
    lengths: list[int]
    """Response tokens."""
    num_truncated: int
    num_well_formed: int


@dataclass(frozen=True, slots=True)
class Told:
    """What the teacher is told about one question."""

    solution: str | None
    feedback: str | None
    sources: frozenset[int]
    """Indices of the rollouts that it comes from."""


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
        base, deliveries, gaps = self._usable(plain), list(plain), []
        for information in get_args(Information):
            told = self._told(information, base)
            taught = await self._sample(information, self._taught_questions(told), is_teacher=True)
            deliveries += taught
            if (gap := teacher_gap(information, told, base, self._usable(taught))).num_questions:
                gaps.append(gap)
        result = msgspec.structs.replace(
            summarize(base, gaps, self._run_id, self._config),
            at=time.time(),
            num_faults=sum(usable_samples(item.message).count(False) for item in deliveries),
            seconds=time.monotonic() - started,
        )
        await self._queue.redis.hset(streams.feeder(self._run_id), _RESULT, msgspec.json.encode(result))
        await self._queue.acknowledge(deliveries)
        return result

    def _usable(self, deliveries: Sequence[Delivery[ScoredGroup]]) -> dict[int, Sampled]:
        return {item.message.group.task.sequence: usable(item.message, self._config) for item in deliveries}

    def _told(self, information: Information, base: Mapping[int, Sampled]) -> dict[int, Told]:
        """What the teacher is told, by index of the question, of those that have such information."""
        found = {
            index: teacher_information(information, sampled, shown_solution(self._questions[index], self._config))
            for index, sampled in base.items()
        }
        return {index: told for index, told in found.items() if told is not None}

    def _taught_questions(self, told: Mapping[int, Told]) -> dict[int, Question]:
        """These questions as the teacher reads them."""
        wording = Wording.of(self._config.objective)
        return {
            index: msgspec.structs.replace(
                self._questions[index],
                prompt=teacher_text(self._questions[index].prompt, item.solution, item.feedback, wording=wording),
            )
            for index, item in told.items()
        }

    async def _sample(
        self, name: str, questions: dict[int, Question], *, is_teacher: bool = False
    ) -> list[Delivery[ScoredGroup]]:
        """Consumes `evaluated`; waits for the judged groups of these questions."""
        tasks = [self._task(name, index, question) for index, question in questions.items()]
        if is_teacher:
            tasks = [msgspec.structs.replace(task, is_teacher=True) for task in tasks]
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
            rewards=deciding_parts(self._config.train_parts()),
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
        feedback=[verdict.feedback.strip() for _, verdict in rows],
        lengths=[len(rollout.token_ids) for rollout, _ in rows],
        num_truncated=sum(rollout.finish_reason == "length" for rollout, _ in rows),
        num_well_formed=sum(verdict.format_ok for _, verdict in rows),
    )


def teacher_information(information: Information, sampled: Sampled, reference: str) -> Told | None:
    """What a teacher is told of this kind about a question; None if the question has none.

    Shown are the first correct rollout that leaves anything to read, and the feedback on the first failed one.

    Args:
        reference: the solution in the question's row; empty for none.
    """
    if information == "reference":
        return Told(reference, None, frozenset()) if reference else None
    rows = list(zip(sampled.correct, sampled.texts, sampled.feedback, strict=True))
    right = next((index for index, (correct, text, _) in enumerate(rows) if correct and text), None)
    failed = next((index for index, (correct, _, feedback) in enumerate(rows) if feedback and not correct), None)
    wanted = {"solution": (right,), "feedback": (failed,), "solution_and_feedback": (right, failed)}[information]
    sources = frozenset(index for index in wanted if index is not None)
    if len(sources) < len(wanted):
        return None
    return Told(
        sampled.texts[right] if right in sources else None,
        sampled.feedback[failed] if failed in sources else None,
        sources,
    )


def teacher_gap(
    information: Information, told: Mapping[int, Told], base: Mapping[int, Sampled], taught: Mapping[int, Sampled]
) -> TeacherGap:
    """Accuracy of the same questions with and without this information; the rollouts it comes from do not count."""
    pairs = [
        (others, taught[index].correct)
        for index, item in told.items()
        if index in taught and taught[index].correct
        if (others := [right for rollout, right in enumerate(base[index].correct) if rollout not in item.sources])
    ]
    return TeacherGap(
        information=information,
        num_questions=len(pairs),
        taught_accuracy=_mean([fmean(correct) for _, correct in pairs]),
        untaught_accuracy=_mean([fmean(others) for others, _ in pairs]),
    )


def summarize(base: Mapping[int, Sampled], gaps: Sequence[TeacherGap], run_id: str, config: RunConfig) -> ProbeFinished:
    """The probe's numbers from the rollouts of each question, and what each kind of information adds."""
    sampled = [item for item in base.values() if item.correct]
    lengths = sorted(length for item in sampled for length in item.lengths)
    solution = next((gap for gap in gaps if gap.information == "solution"), None)
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
        num_taught_questions=solution.num_questions if solution else 0,
        taught_accuracy=solution.taught_accuracy if solution else 0.0,
        untaught_accuracy=solution.untaught_accuracy if solution else 0.0,
        gaps=list(gaps),
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
