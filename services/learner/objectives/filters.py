"""What is left out of the update though it was sampled and judged: options, off by default. Plain Python, one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.contracts.run_config import ObjectiveSection
from services.learner.objectives.routing import Assignment


@dataclass(frozen=True, slots=True)
class Kept:
    """One group's routing after the options."""

    assignments: list[Assignment]
    num_masked: int
    """Rollouts left out because they were cut at the limit."""
    uninformative: bool
    """The group was left out as a whole."""


def leave_out(
    assignments: Sequence[Assignment],
    truncated: Sequence[bool],
    advantages: Sequence[float],
    objective: ObjectiveSection,
) -> Kept:
    """Apply `mask_truncated` (DAPO's overlong filtering, arXiv 2503.14476, section 3.4), then
    `skip_uninformative_groups` (after its section 3.2, without sampling others).

    What is left out has route `none`: no loss, no tokens in the denominator, no teacher pass. Its reward stays in the
    group's baseline, and it may still be the demonstration of a sibling. A group is uninformative if every rollout
    left has advantage 0 and no teacher pass, so that nothing in it could move the policy.

    Args:
        assignments, truncated, advantages: one entry per rollout.
    """
    kept, num_masked = list(assignments), 0
    for index, (item, cut) in enumerate(zip(assignments, truncated, strict=True)):
        if objective.mask_truncated and cut and item.route != "none":
            kept[index] = _without(item)
            num_masked += 1
    if not objective.skip_uninformative_groups:
        return Kept(kept, num_masked, False)
    signal = any(
        item.route != "none" and (item.needs_teacher or advantage != 0.0)
        for item, advantage in zip(kept, advantages, strict=True)
    )
    return Kept(kept if signal else [_without(item) for item in kept], num_masked, not signal)


def _without(item: Assignment) -> Assignment:
    return replace(item, route="none", needs_teacher=False)
