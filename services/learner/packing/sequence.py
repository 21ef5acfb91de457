"""The border between groups and updates: what `update.run_minibatch` needs to know about a rollout."""

from __future__ import annotations

from dataclasses import dataclass

from services.contracts.objectives.base import Route


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One rollout as the objective needs it."""

    prompt_ids: list[int]
    """The rendered prompt; at least one token."""
    response_ids: list[int]
    """The sampled tokens, including end-of-sequence if it was sampled; may be empty."""
    behaviour_logprobs: list[float]
    """mu: natural-log probability of each response token under the distribution that it was sampled from."""
    advantage: float
    """Group-relative advantage of the rollout (`objectives.terms.advantages`)."""
    route: Route
    teacher_prompt_ids: list[int] | None
    """The enriched prompt; None unless a teacher pass is needed (`Objective.asks_teacher`)."""
    wrong_hint_ids: list[int] | None = None
    """The same prompt with a failed sibling as the solution, for `objective.wrong_hint`; None for no contrast."""
    difficulty: float = 1.0
    """sqrt(p (1 - p)) of its question, p being the share of correct rollouts; for `question_weight`."""
