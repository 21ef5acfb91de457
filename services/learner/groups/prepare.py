"""Turns scored groups into training sequences: routing, advantages, teacher prompts (arXiv 2604.02288, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.contracts.messages import ScoredGroup
from services.contracts.run_config import RunConfig
from services.contracts.teacher_text import Wording, shown_solution
from services.learner.groups.routed import routed
from services.learner.objectives.echoes import num_echoes
from services.learner.objectives.routing import Assignment, without_teacher
from services.learner.objectives.teacher_prompt import shown_response, teacher_prompt_ids
from services.learner.packing.sequence import TrainSequence


@dataclass(frozen=True, slots=True)
class PreparedGroup:
    """A group ready for training. Lists have one entry per rollout, including excluded ones."""

    scored: ScoredGroup
    usable: list[bool]
    assignments: list[Assignment]
    sequences: list[TrainSequence]
    teaches: bool
    """Something in it could move the policy."""
    num_masked: int = 0
    """Rollouts left out by `objective.mask_truncated`."""
    uninformative: bool = False
    """Left out by `objective.skip_uninformative_groups`."""
    num_echoes: int = 0
    """Usable rollouts that repeat how the teacher was asked (`objectives.echoes`)."""


def prepare_group(
    scored: ScoredGroup, config: RunConfig, tokenizer: Any, num_positions: int | None = None
) -> PreparedGroup:
    """Route one group and lay out its sequences. Deterministic: depends only on the group and the run's configuration.

    Args:
        num_positions: length of the model's table of positions; None for a model that computes them. A rollout gets no
            teacher if the enriched prompt and the response, together, exceed it.
    """
    routing = routed(scored, config)
    kept, rollouts = routing.kept, scored.group.rollouts
    assignments = kept.assignments
    prompts = _teacher_prompts(scored, assignments, tokenizer, config)
    wrong = _teacher_prompts(scored, assignments, tokenizer, config, wrong=True)
    for index, rollout in enumerate(rollouts):
        longest = max(len(prompts[index] or ()), len(wrong[index] or ()))
        if longest and num_positions is not None and longest + len(rollout.token_ids) > num_positions:
            assignments[index] = without_teacher(assignments[index], config.objective)
            prompts[index] = wrong[index] = None
    question = scored.group.prompt_token_ids.tolist()
    sequences = [
        TrainSequence(
            prompt_ids=question,
            response_ids=rollout.token_ids.tolist(),
            behaviour_logprobs=rollout.logprobs.tolist(),
            advantage=advantage,
            route=assignment.route,
            teacher_prompt_ids=prompt,
            wrong_hint_ids=hint,
            difficulty=math.sqrt(assignment.share_correct * (1.0 - assignment.share_correct)),
        )
        for rollout, advantage, assignment, prompt, hint in zip(
            rollouts, routing.advantages, assignments, prompts, wrong, strict=True
        )
    ]
    responses = [rollout.text for rollout, usable in zip(rollouts, routing.usable, strict=True) if usable]
    return PreparedGroup(
        scored=scored,
        usable=routing.usable,
        assignments=assignments,
        sequences=sequences,
        teaches=kept.teaches,
        num_masked=kept.num_masked,
        uninformative=kept.uninformative,
        num_echoes=num_echoes(scored.group.task.question, responses, config.objective),
    )


def _teacher_prompts(
    scored: ScoredGroup, assignments: Sequence[Assignment], tokenizer: Any, config: RunConfig, *, wrong: bool = False
) -> list[list[int] | None]:
    """The enriched prompt of each rollout that needs a teacher, None for others. Siblings with the same demonstrations
    and feedback share the rendering.

    Args:
        wrong: with the wrong hint in place of the demonstrations, for rollouts that have one.
    """
    rendered: dict[tuple[tuple[int, ...], bool, str | None], list[int]] = {}
    prompts: list[list[int] | None] = []
    question, arguments = scored.group.task.question, config.teacher_chat_template_kwargs
    wording = Wording.of(config.objective)
    for assignment, verdict in zip(assignments, scored.verdicts, strict=True):
        if not assignment.needs_teacher or (wrong and assignment.wrong_hint is None):
            prompts.append(None)
            continue
        shown, reference = assignment.demonstrations, assignment.reference
        if wrong and assignment.wrong_hint is not None:
            shown, reference = (assignment.wrong_hint,), False
        feedback = verdict.feedback if assignment.feedback else None
        key = (shown, reference, feedback)
        if key not in rendered:
            solutions = [shown_response(scored.group.rollouts[index], config) for index in shown]
            if reference:
                solutions = [shown_solution(question, config)]
            first, further = solutions[0] if solutions else None, solutions[1:]
            rendered[key] = teacher_prompt_ids(
                tokenizer, question, first, feedback, arguments, further, wording=wording
            )
        prompts.append(rendered[key])
    return prompts
