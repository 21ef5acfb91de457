"""The border between an update and the training engine that does it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """What a mini-batch needs of the training engine. All ranks call its methods in the same order."""

    student: nn.Module
    """Hugging Face causal LM; parameters in the type of the forward pass."""
    teacher: nn.Module | None
    """Hugging Face causal LM that holds the moving-average weights, without gradients; None if never needed."""
    reference: nn.Module | None
    """Hugging Face causal LM with the run's initial weights, frozen; None if `reference_kl_coefficient` is 0."""
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


def real_type(engine: Engine) -> torch.dtype:
    """float64 for float64 models (tests), float32 for all others."""
    kind = next(engine.student.parameters()).dtype
    return torch.promote_types(kind, torch.float32)


def clock(engine: Engine) -> float:
    """`time.perf_counter`, once the device has done what was queued: else it would count as what comes next."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return time.perf_counter()


def numbers(engine: Engine, values: Sequence[float]) -> Tensor:
    """float64 on the engine's device, for reductions over ranks."""
    return torch.tensor([float(value) for value in values], dtype=torch.float64, device=engine.device)
