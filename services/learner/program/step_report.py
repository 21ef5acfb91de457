"""The numbers and samples of one step, for `StepFinished` and `SamplesTaken`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from statistics import fmean
from typing import Any, Final

import msgspec

from services.contracts.events import (
    Histogram,
    ReadableResponse,
    ReadingMaterial,
    Sample,
    SamplesTaken,
    StepFinished,
    TeacherInformation,
)
from services.contracts.messages import Question, Rollout
from services.contracts.run_config import RunConfig
from services.learner.groups.curriculum import POOLS
from services.learner.groups.prepare import PreparedGroup
from services.learner.objectives.routing import Assignment
from services.learner.objectives.teacher_prompt import shown_response
from services.learner.update.statistics import MinibatchReport, TokenDetail, step_metrics, weight_histogram

STALENESS_EDGES: Final = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0]
"""Ages in weight versions."""
PART_KINDS: Final = ("row", "judge", "length", "format")
"""Kinds of parts with a metric of their own."""


def step_numbers(
    groups: Sequence[PreparedGroup],
    version: int,
    reports: Sequence[MinibatchReport],
    *,
    num_replaced: int,
    pools: Mapping[str, int],
    learning_rate: float,
    seconds_wait: float,
    peak_bytes: int,
) -> dict[str, float]:
    """All `STEP_METRICS` of a step except those that `with_rates` adds. `version` and `num_replaced` are as for
    `group_metrics`, `pools` as in `Batch`, `peak_bytes` as in `Trained`."""
    rest = {"learning_rate": learning_rate, "seconds_wait": seconds_wait, "learner_peak_memory_gib": peak_bytes / 2**30}
    rest |= {f"num_{pool}_questions": float(pools.get(pool, 0)) for pool in POOLS}
    return group_metrics(groups, version, num_replaced) | step_metrics(reports) | rest


def step_histograms(
    groups: Sequence[PreparedGroup], version: int, reports: Sequence[MinibatchReport]
) -> dict[str, Histogram]:
    """All `STEP_HISTOGRAMS` of a step. `version` is as for `group_metrics`."""
    return {
        "distillation_weight": weight_histogram(reports),
        "staleness_versions": staleness_histogram(token_ages(groups, version)),
    }


def group_metrics(groups: Sequence[PreparedGroup], version: int, num_replaced: int) -> dict[str, float]:
    """The metrics that follow from a step's groups alone: rewards, routing, lengths, ages.

    Args:
        version: weight version that the step starts from.
        num_replaced: groups that taught nothing and were replaced by some of `groups`.
    """
    used = [item for group in groups for item in _used(group)]
    rewards = [reward for _, reward, _ in used]
    lengths = [len(rollout.token_ids) for rollout, _, _ in used]
    thoughts = [rollout.thinking or None for rollout, _, _ in used]
    ages = token_ages(groups, version)
    routes = [assignment.route for _, _, assignment in used]
    hinted = [assignment.wrong_hint is not None for _, _, assignment in used if assignment.needs_teacher]
    shown = [len(assignment.demonstrations) for _, _, assignment in used if assignment.needs_teacher]
    num_tokens = sum(ages.values())
    outcomes = [_outcomes(group) for group in groups]
    num_teaching = sum(group.teaches for group in groups)
    return {
        "reward_mean": fmean(rewards),
        **part_means(groups),
        "accuracy": fmean(assignment.correct for _, _, assignment in used),
        "routing_ratio_grpo": routes.count("grpo") / len(routes),
        "routing_ratio_sdpo": routes.count("sdpo") / len(routes),
        "teacher_information_ratio": fmean(assignment.teacher_information for _, _, assignment in used),
        "response_tokens_mean": fmean(lengths),
        "response_tokens_max": float(max(lengths)),
        "thinking_tokens_mean": fmean(0 if thinking is None else thinking.num_tokens for thinking in thoughts),
        "unfinished_thinking_ratio": fmean(thinking is not None and not thinking.closed for thinking in thoughts),
        "truncated_ratio": fmean(rollout.finish_reason == "length" for rollout, _, _ in used),
        "teacher_wording_ratio": sum(group.num_echoes for group in groups) / len(used),
        "staleness_mean": sum(age * count for age, count in ages.items()) / max(1, num_tokens),
        "staleness_max": float(max(ages, default=0)),
        "num_groups": float(len(groups)),
        "num_rollouts": float(len(used)),
        "num_excluded_rollouts": float(sum(group.usable.count(False) for group in groups)),
        "num_masked_rollouts": float(sum(group.num_masked for group in groups)),
        "demonstrations_mean": fmean(shown) if shown else 0.0,
        "wrong_hint_ratio": fmean(hinted) if hinted else 0.0,
        "num_uninformative_groups": float(sum(group.uninformative for group in groups)),
        "num_replaced_groups": float(num_replaced),
        "sampled_teaching_ratio": num_teaching / (len(groups) + num_replaced),
        "trained_teaching_ratio": num_teaching / len(groups),
        "mixed_group_ratio": fmean(any(correct) and not all(correct) for correct in outcomes),
        "failed_group_ratio": fmean(not any(correct) for correct in outcomes),
    }


def gate_evidence(groups: Sequence[PreparedGroup]) -> tuple[float, float]:
    """Mean reward and 95th percentile of response lengths of a step's rollouts, for `TeacherGate`."""
    used = [item for group in groups for item in _used(group)]
    lengths = sorted(len(rollout.token_ids) for rollout, _, _ in used)
    return fmean(reward for _, reward, _ in used), float(lengths[ceil(0.95 * len(lengths)) - 1])


def part_means(groups: Sequence[PreparedGroup], *, by_name: bool = False) -> dict[str, float]:
    """Mean reward of the parts of each kind, as `reward_<kind>`; nothing without `rewards`.

    Args:
        by_name: instead for each part that has a name of its own, as `reward_part/<name>`. They are in the step's
            record only, as `source_numbers` are.
    """
    found: dict[str, list[float]] = {}
    for group in groups:
        for part in group.scored.group.task.rewards or ():
            key = f"reward_{part.kind if part.kind in PART_KINDS else 'other'}"
            if by_name:
                if part.name == part.kind:
                    continue
                key = f"reward_part/{part.name}"
            for verdict, usable in zip(group.scored.verdicts, group.usable, strict=True):
                if usable and verdict.parts:
                    found.setdefault(key, []).append(verdict.parts[part.name])
    return {key: fmean(values) for key, values in found.items()}


def source_numbers(groups: Sequence[PreparedGroup], config: RunConfig) -> dict[str, float]:
    """For each source of a mixture that has groups in the step, `reward_mean/<source>`, `accuracy/<source>` and
    `num_groups/<source>`; nothing for a single source.

    They are in the step's record only: Prometheus and the page would need a label per source of every run.
    """
    if isinstance(config.data.train, str) or len(config.data.train) < 2:
        return {}
    found: dict[str, float] = {}
    for source in config.data.train_sources():
        own = [item for item in groups if item.scored.group.task.question.id.startswith(f"{source.label}/")]
        used = [item for group in own for item in _used(group)]
        if used:
            found[f"reward_mean/{source.label}"] = fmean(reward for _, reward, _ in used)
            found[f"accuracy/{source.label}"] = fmean(assignment.correct for _, _, assignment in used)
            found[f"num_groups/{source.label}"] = float(len(own))
    return found


def _used(group: PreparedGroup) -> Iterator[tuple[Rollout, float, Any]]:
    for index, usable in enumerate(group.usable):
        if usable:
            scored = group.scored
            yield scored.group.rollouts[index], scored.verdicts[index].reward, group.assignments[index]


def _outcomes(group: PreparedGroup) -> list[bool]:
    """Whether each usable rollout is correct."""
    return [assignment.correct for _, _, assignment in _used(group)]


def token_ages(groups: Sequence[PreparedGroup], version: int) -> dict[int, int]:
    """Number of trained tokens by age in weight versions."""
    ages: dict[int, int] = {}
    for group in groups:
        for rollout, _, _ in _used(group):
            for span in rollout.weight_versions:
                age = max(0, version - span.version)
                ages[age] = ages.get(age, 0) + span.end - span.start
    return ages


def staleness_histogram(ages: Mapping[int, int]) -> Histogram:
    counts = [0] * (len(STALENESS_EDGES) - 1)
    for age, count in ages.items():
        bucket = sum(age >= edge for edge in STALENESS_EDGES[1:-1])
        counts[bucket] += count
    return Histogram(edges=list(STALENESS_EDGES), counts=counts, total=float(sum(a * c for a, c in ages.items())))


def with_rates(
    event: StepFinished,
    *,
    seconds: float | None = None,
    seconds_checkpoint: float | None = None,
    seconds_publish: float | None = None,
) -> StepFinished:
    """The event with the given times filled in, and `tokens_per_second` derived from them. The first call must set
    `seconds`."""
    times = {"seconds": seconds, "seconds_checkpoint": seconds_checkpoint, "seconds_publish": seconds_publish}
    metrics = event.metrics | {name: value for name, value in times.items() if value is not None}
    whole = metrics["seconds"]
    metrics["tokens_per_second"] = metrics["num_tokens"] / whole if whole > 0 else 0.0
    return msgspec.structs.replace(event, at=time.time(), metrics=metrics)


def samples_taken(
    group: PreparedGroup, details: Mapping[int, TokenDetail], run_id: str, step: int, tokenizer: Any, config: RunConfig
) -> SamplesTaken:
    """One group token by token. `details` is by rollout index, and lacks the rollouts that this rank did not train."""
    task = group.scored.group.task
    samples = []
    for index, rollout in enumerate(group.scored.group.rollouts):
        if not group.usable[index]:
            continue
        sequence, verdict, detail = group.sequences[index], group.scored.verdicts[index], details.get(index)
        teacher = sequence.teacher_prompt_ids
        samples.append(
            Sample(
                index=index,
                text=rollout.text,
                tokens=[tokenizer.decode([token]) for token in rollout.token_ids],
                reward=verdict.reward,
                correct=group.assignments[index].correct,
                route=sequence.route,
                advantage=sequence.advantage,
                feedback=verdict.feedback,
                teacher_prompt="" if teacher is None else tokenizer.decode(teacher),
                behaviour_logprobs=rollout.logprobs.tolist(),
                logprobs=detail.logprobs if detail else [],
                teacher_entropy=detail.teacher_entropy if detail else [],
                distillation_weight=detail.weight if detail else [],
                divergence=detail.divergence if detail else [],
                parts=verdict.parts,
            )
        )
    return SamplesTaken(
        run_id=run_id,
        at=time.time(),
        step=step,
        group_id=task.group_id,
        question_id=task.question.id,
        prompt=_conversation(task.question),
        answer=task.question.answer,
        samples=samples,
        material=_material(group, config),
    )


def _material(group: PreparedGroup, config: RunConfig) -> ReadingMaterial:
    responses = [
        ReadableResponse(
            index=index,
            token_ids=rollout.token_ids.tolist(),
            demonstration=shown_response(rollout, config),
            told=None if group.sequences[index].teacher_prompt_ids is None else _told(group.assignments[index]),
        )
        for index, rollout in enumerate(group.scored.group.rollouts)
        if group.usable[index]
    ]
    question = msgspec.structs.replace(group.scored.group.task.question, tests="")
    return ReadingMaterial(question=question, responses=responses)


def _told(assignment: Assignment) -> TeacherInformation:
    return TeacherInformation(
        demonstrations=list(assignment.demonstrations), reference=assignment.reference, feedback=assignment.feedback
    )


def _conversation(question: Question) -> str:
    """The prompt as text, with the messages before it if there are any."""
    parts = [f"{turn.role}: {turn.content}" for turn in question.turns]
    return "\n\n".join([*parts, f"user: {question.prompt}"]) if parts else question.prompt
