"""What the objective makes of a scored group: routes, advantages, and whether the group teaches anything.

Pure and without a tokenizer, so the batcher can ask it of a group that may not be trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.contracts.evaluations.tasks import usable_samples
from services.contracts.messages import Rollout, ScoredGroup
from services.contracts.run_config import RunConfig
from services.contracts.teacher_text import shown_solution
from services.learner.objectives.filters import Kept, leave_out
from services.learner.objectives.routing import GroupOutcome, route_group
from services.learner.objectives.teacher_prompt import shown_response
from services.learner.objectives.terms.advantages import group_advantages


@dataclass(frozen=True, slots=True)
class Routed:
    """A group's routing. Lists have one entry per rollout, including excluded ones."""

    usable: list[bool]
    advantages: list[float]
    kept: Kept


def share_correct(group: ScoredGroup, threshold: float) -> float:
    """Share of the usable rollouts, of which there must be one, that are correct."""
    usable = [
        verdict.solves(threshold) for verdict, ok in zip(group.verdicts, usable_samples(group), strict=True) if ok
    ]
    return sum(usable) / len(usable)


def routed(scored: ScoredGroup, config: RunConfig) -> Routed:
    """Route one group. Depends only on the group and the run's configuration."""
    rollouts, verdicts, objective = scored.group.rollouts, scored.verdicts, config.objective
    usable = usable_samples(scored)
    rewards = [verdict.reward for verdict in verdicts]
    texts = [shown_response(rollout, config) for rollout in rollouts]
    outcome = GroupOutcome(
        correct=[verdict.solves(objective.success_threshold) for verdict in verdicts],
        usable=usable,
        has_feedback=[bool(verdict.feedback.strip()) for verdict in verdicts],
        num_tokens=[len(rollout.token_ids) for rollout in rollouts],
        demonstrates=[bool(text) for text in texts],
        has_solution=bool(shown_solution(scored.group.task.question, config)),
        tokens=[rollout.token_ids.tolist() for rollout in rollouts if objective.demonstration == "closest"],
        surprise=[_surprise(rollout) for rollout in rollouts if objective.demonstration == "likeliest"],
        texts=texts if objective.demonstrations > 1 or objective.wrong_hint else (),
    )
    advantages = group_advantages(rewards, usable, objective.advantage)
    truncated = [rollout.finish_reason == "length" for rollout in rollouts]
    assignments = route_group(outcome, objective, f"{config.training.seed}/{scored.group.task.group_id}")
    return Routed(usable, advantages, leave_out(assignments, truncated, advantages, objective))


def _surprise(rollout: Rollout) -> float:
    """Mean of -log mu over a response; 0 for an empty one."""
    return -float(np.mean(rollout.logprobs, dtype=np.float64)) if len(rollout.logprobs) else 0.0


def teaches(scored: ScoredGroup, config: RunConfig) -> bool:
    """Whether training on the group could move the policy under the run's objective (`filters.leave_out`).

    A teacher prompt that turns out to be too long for a model's table of positions counts as one that can be read.
    """
    if config.objective.demonstration == "closest":  # which one is shown does not matter, and finding it takes time
        config = config.model_copy(update={"objective": config.objective.model_copy(update={"demonstration": "first"})})
    return routed(scored, config).kept.teaches
