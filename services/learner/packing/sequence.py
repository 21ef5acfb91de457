"""The border between the objectives and the rest of the learner.

The training loop turns scored groups into `TrainSequence`s and gives an `Engine`; `update.run_minibatch` needs
nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from services.contracts.objectives.base import Route


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One rollout as the objective needs it."""

    prompt_ids: list[int]
    """The rendered prompt; at least one token."""
    response_ids: list[int]
    """The sampled tokens, end-of-sequence included where it was sampled; may be empty."""
    behaviour_logprobs: list[float]
    """mu: natural-log probability of each response token under the distribution that it was drawn from."""
    advantage: float
    """Group-relative advantage of the rollout (`objectives.terms.advantages`)."""
    route: Route
    teacher_prompt_ids: list[int] | None
    """The enriched prompt, set exactly if a teacher pass is needed (`Objective.asks_teacher`)."""


class Engine(Protocol):
    """What a mini-batch needs of the training engine. All ranks call its methods in the same order."""

    student: nn.Module
    """Hugging Face causal LM; parameters in the type of the forward pass."""
    teacher: nn.Module | None
    """Hugging Face causal LM that holds the moving-average weights, without gradients; None where never needed."""
    reference: nn.Module | None
    """Hugging Face causal LM with the run's initial weights, frozen; None where `reference_kl_coefficient` is 0."""
    rank: int
    num_ranks: int
    device: torch.device

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Backward pass of one micro-batch. Gradients SUM over micro-batches and ranks (the engine undoes any
        averaging of its own); `last` marks the final one before `step`."""

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks; same shape and dtype (float64 included)."""

    def all_reduce_max(self, values: Tensor) -> Tensor:
        """Element-wise maximum over ranks; same shape and dtype (float64 included)."""

    def step(self) -> float:
        """Optimizer update. Returns the global gradient norm before clipping and clears the gradients."""
