"""Turns scored groups into training sequences: routing, advantages, teacher prompts (arXiv 2604.02288, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.contracts.messages import ScoredGroup
from services.contracts.run_config import RunConfig
from services.learner.groups.batcher import usable_samples
from services.learner.objectives.filters import leave_out
from services.learner.objectives.routing import Assignment, GroupOutcome, route_group, without_teacher
from services.learner.objectives.teacher_prompt import teacher_prompt_ids, without_thinking
from services.learner.objectives.terms.advantages import group_advantages
from services.learner.packing.sequence import TrainSequence


@dataclass(frozen=True, slots=True)
class PreparedGroup:
    """A group ready for training. Lists have one entry per rollout, including excluded ones."""

    scored: ScoredGroup
    usable: list[bool]
    assignments: list[Assignment]
    sequences: list[TrainSequence]
    num_masked: int = 0
    """Rollouts left out by `objective.mask_truncated`."""
    uninformative: bool = False
    """Left out by `objective.skip_uninformative_groups`."""


def prepare_group(
    scored: ScoredGroup, config: RunConfig, tokenizer: Any, num_positions: int | None = None
) -> PreparedGroup:
    """Route one group and lay out its sequences. Deterministic: depends only on the group and the run's configuration.

    Args:
        num_positions: length of the model's table of positions; None for a model that computes them. A rollout gets no
            teacher if the enriched prompt and the response, together, exceed it.
    """
    rollouts, verdicts = scored.group.rollouts, scored.verdicts
    usable = usable_samples(scored)
    rewards = [verdict.reward for verdict in verdicts]
    outcome = GroupOutcome(
        rewards=rewards,
        usable=usable,
        has_feedback=[bool(verdict.feedback.strip()) for verdict in verdicts],
        num_tokens=[len(rollout.token_ids) for rollout in rollouts],
        demonstrates=[bool(without_thinking(rollout.text)) for rollout in rollouts],
        has_solution=bool(without_thinking(scored.group.task.question.solution or "")),
        tokens=[rollout.token_ids.tolist() for rollout in rollouts if config.objective.demonstration == "closest"],
    )
    seed = f"{config.training.seed}/{scored.group.task.group_id}"
    advantages = group_advantages(rewards, usable, config.objective.advantage)
    truncated = [rollout.finish_reason == "length" for rollout in rollouts]
    kept = leave_out(route_group(outcome, config.objective, seed), truncated, advantages, config.objective)
    assignments = kept.assignments
    prompts = _teacher_prompts(scored, assignments, tokenizer)
    for index, (prompt, rollout) in enumerate(zip(prompts, rollouts, strict=True)):
        if prompt and num_positions is not None and len(prompt) + len(rollout.token_ids) > num_positions:
            assignments[index] = without_teacher(assignments[index], config.objective)
            prompts[index] = None
    question = scored.group.prompt_token_ids.tolist()
    sequences = [
        TrainSequence(
            prompt_ids=question,
            response_ids=rollout.token_ids.tolist(),
            behaviour_logprobs=rollout.logprobs.tolist(),
            advantage=advantage,
            route=assignment.route,
            teacher_prompt_ids=prompt,
            difficulty=math.sqrt(assignment.share_correct * (1.0 - assignment.share_correct)),
        )
        for rollout, advantage, assignment, prompt in zip(rollouts, advantages, assignments, prompts, strict=True)
    ]
    return PreparedGroup(scored, usable, assignments, sequences, kept.num_masked, kept.uninformative)


def _teacher_prompts(scored: ScoredGroup, assignments: Sequence[Assignment], tokenizer: Any) -> list[list[int] | None]:
    """The enriched prompt of each rollout that needs a teacher, None for others. Siblings with the same demonstration
    and feedback share the rendering."""
    rendered: dict[tuple[int | None, bool, str | None], list[int]] = {}
    prompts: list[list[int] | None] = []
    for assignment, verdict in zip(assignments, scored.verdicts, strict=True):
        if not assignment.needs_teacher:
            prompts.append(None)
            continue
        demonstration = assignment.demonstration
        feedback = verdict.feedback if assignment.feedback else None
        key = (demonstration, assignment.reference, feedback)
        if key not in rendered:
            question = scored.group.task.question
            solution = None if demonstration is None else scored.group.rollouts[demonstration].text
            if assignment.reference:
                solution = question.solution or None
            rendered[key] = teacher_prompt_ids(tokenizer, question, solution, feedback)
        prompts.append(rendered[key])
    return prompts
