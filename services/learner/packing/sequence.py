"""The border between groups and updates: what `update.run_minibatch` needs to know of a rollout."""

from __future__ import annotations

from dataclasses import dataclass

from services.contracts.objectives.base import Route


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One rollout as the objective needs it."""

    prompt_ids: list[int]
    """The rendered prompt; at least one token."""
    response_ids: list[int]
    """The sampled tokens, end-of-sequence included if it was sampled; may be empty."""
    behaviour_logprobs: list[float]
    """mu: natural-log probability of each response token under the distribution that it was drawn from."""
    advantage: float
    """Group-relative advantage of the rollout (`objectives.terms.advantages`)."""
    route: Route
    teacher_prompt_ids: list[int] | None
    """The enriched prompt, set exactly if a teacher pass is needed (`Objective.asks_teacher`)."""
