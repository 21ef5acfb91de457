"""What a probe's numbers mean for the run that is being considered: its time, and advice in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import msgspec

from services.contracts.events import ProbeFinished, TeacherGap
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.records import Probe
from services.contracts.run_config import RunConfig, merge

FEW, MANY = 0.2, 0.5
"""Shares of questions: too few that teach; too many that cannot."""
SMALL_GAP, LARGE_GAP = 0.02, 0.1
"""Teacher gaps: none to speak of; enough to distil."""
NAME = "probe of "


def probe_config(config: RunConfig, num_questions: int, steps: int) -> RunConfig:
    """The run that probes `config`: its sampling and its training steps, without evaluations."""
    changes = {
        "name": (NAME + config.name)[:100],
        "training": {"steps": steps},
        "evaluation": {"every_steps": None, "before_training": False, "after_training": False},
        "probe": {"num_questions": num_questions, "planned_steps": config.training.steps},
    }
    return RunConfig.model_validate(merge(config.model_dump(mode="json"), changes))


def report(config: RunConfig, found: ProbeFinished, steps: Sequence[Mapping[str, float]]) -> Probe:
    """The probe as people see it. `steps` are the metrics of the training steps so far."""
    assert config.probe is not None
    times = [metrics["seconds"] for metrics in steps if "seconds" in metrics]
    usual = fmean(times[1:] or times) if times else None  # the first step waits for the first rollouts
    hours = usual * config.probe.planned_steps / 3600 if usual is not None else None
    return Probe(
        result=found,
        teacher_gap=found.teacher_gap,
        gaps=gaps_of(found),
        seconds_per_step=usual,
        hours=hours,
        planned_steps=config.probe.planned_steps,
        advice=list(advice(config, found)),
    )


def advice(config: RunConfig, found: ProbeFinished) -> Iterator[str]:
    """What to change before the run starts, most important first; at least one sentence."""
    if not found.num_questions:
        yield "No question could be judged. The notes of this run and the verifier's log say why."
        return
    before = list(_task_advice(config, found))
    yield from before
    yield from _length_advice(config, found)
    yield from _teacher_advice(config, found)
    if not before:
        yield f"{found.mixed_ratio:.0%} of the questions have correct and failed rollouts, so the task can be learned."


def _task_advice(config: RunConfig, found: ProbeFinished) -> Iterator[str]:
    if found.num_faults > 0.1 * found.num_questions * found.num_samples:
        yield f"{found.num_faults} rollouts could not be judged. Fix that first: the verifier's log says why."
    if found.well_formed_ratio < 1 - FEW:
        yield (
            f"Only {found.well_formed_ratio:.0%} of the responses have the form that the reward asks for. Describe it "
            "in the system message; until the model keeps to it, the reward measures the form."
        )
    if found.all_wrong_ratio > MANY:
        yield (
            f"{found.all_wrong_ratio:.0%} of the questions have no correct rollout and teach nothing. Use easier "
            f"questions or a stronger model, or raise rollout.group_size (now {config.rollout.group_size})."
        )
    if found.all_correct_ratio > MANY:
        yield f"{found.all_correct_ratio:.0%} of the questions are already solved. Use harder ones."
    elif found.mixed_ratio < FEW and found.all_wrong_ratio <= MANY:
        share = f"{found.mixed_ratio:.0%}"
        yield f"Only {share} of the questions have correct and failed rollouts: most steps teach little."


def _length_advice(config: RunConfig, found: ProbeFinished) -> Iterator[str]:
    limit = config.rollout.max_response_tokens
    if found.truncated_ratio > 0.1:
        share = f"{found.truncated_ratio:.0%}"
        yield f"{share} of the responses are cut at {limit} tokens. Raise rollout.max_response_tokens."
    elif found.response_tokens_p95 * 4 < limit:
        yield (
            f"95% of the responses are at most {found.response_tokens_p95} tokens long. A rollout.max_response_tokens "
            f"lower than {limit} would save memory; leave room for responses to grow."
        )


def gaps_of(found: ProbeFinished) -> list[TeacherGap]:
    """The teacher gaps of a probe, empty in those of before there were several."""
    return [] if found.gaps is msgspec.UNSET else found.gaps


def _teacher_advice(config: RunConfig, found: ProbeFinished) -> Iterator[str]:
    if config.objective.teacher_path is not None:
        yield "The teacher gaps are the policy's own; objective.teacher_path, another model, was not measured."
        return
    if not found.num_taught_questions:
        yield "No question had a correct rollout to demonstrate, so no sibling's solution could be tried."
    else:
        yield _sibling_advice(found, distils=OBJECTIVES[config.objective.name].has_teacher)
    yield from _information_advice(config, found)


def _sibling_advice(found: ProbeFinished, *, distils: bool) -> str:
    gap = found.teacher_gap
    text = f"A correct sibling's solution changes accuracy by {100 * gap:+.0f} points"
    if gap < SMALL_GAP:
        text += ": the teacher knows no better than the student."
        return text + (
            " Self-distillation has little to give here; compare with objective.name grpo." if distils else ""
        )
    if gap > LARGE_GAP:
        return f"{text}: self-distillation has something to teach." + (
            "" if distils else " Consider objective.name srpo."
        )
    return f"{text}."


def _information_advice(config: RunConfig, found: ProbeFinished) -> Iterator[str]:
    """Names information that the run's teacher is not told, though it helps clearly more than a sibling's solution."""
    objective = config.objective
    if not OBJECTIVES[objective.name].has_teacher:
        return
    gaps = {gap.information: gap for gap in gaps_of(found)}
    known = gaps["solution"].points if "solution" in gaps else 0.0
    for information, (what, remedy, told) in {
        "feedback": ("The verifier's feedback alone", "objective.feedback fallback", objective.feedback != "none"),
        "solution_and_feedback": (
            "A sibling's solution with feedback",
            "objective.feedback with_solution",
            objective.feedback == "with_solution",
        ),
        "reference": (
            "The solution in the question's row",
            "objective.demonstration reference",
            objective.demonstration == "reference",
        ),
    }.items():
        if not told and information in gaps and gaps[information].points > known + SMALL_GAP:
            yield f"{what} changes accuracy by {100 * gaps[information].points:+.0f} points: consider {remedy}."
