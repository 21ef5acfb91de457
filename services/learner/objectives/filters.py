"""What is left out of the update though it was sampled and judged: options, off by default. Plain Python, one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.run_config import ObjectiveSection
from services.learner.objectives.routing import Assignment


@dataclass(frozen=True, slots=True)
class Kept:
    """One group's routing after the options."""

    assignments: list[Assignment]
    num_masked: int
    """Rollouts left out because they were cut at the limit."""
    teaches: bool
    """Something in the group could move the policy (`Objective.teaches`)."""
    uninformative: bool
    """The group was left out as a whole."""


def leave_out(
    assignments: Sequence[Assignment],
    truncated: Sequence[bool],
    advantages: Sequence[float],
    objective: ObjectiveSection,
) -> Kept:
    """Apply `mask_truncated` (DAPO's overlong filtering, arXiv 2503.14476, section 3.4), then
    `skip_uninformative_groups` (after its section 3.2; `training.refill` samples others instead).

    What is left out has route `none`: no loss, no tokens in the denominator, no teacher pass. Its reward stays in the
    group's baseline, and it may still be the demonstration of a sibling. A group teaches if any rollout left has an
    advantage or a teacher pass that moves the policy. The KL to the initial model is not a lesson: it has no reward.

    Args:
        assignments, truncated, advantages: one entry per rollout.
    """
    kept, num_masked = list(assignments), 0
    for index, (item, cut) in enumerate(zip(assignments, truncated, strict=True)):
        if objective.mask_truncated and cut and item.route != "none":
            kept[index] = _without(item)
            num_masked += 1
    rules = OBJECTIVES[objective.name]
    teaches = any(
        item.route != "none" and rules.teaches(advantage, item.needs_teacher, objective)
        for item, advantage in zip(kept, advantages, strict=True)
    )
    uninformative = objective.skip_uninformative_groups and not teaches
    return Kept([_without(item) for item in kept] if uninformative else kept, num_masked, teaches, uninformative)


def _without(item: Assignment) -> Assignment:
    return replace(item, route="none", needs_teacher=False)
