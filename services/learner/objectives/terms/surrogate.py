"""Clipped surrogate of a policy-gradient step (arXiv 2402.03300 eq. 3, arXiv 2503.14476 eq. 8, arXiv 1912.09729
section 4)."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """-min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A) a token; shape of `ratio`, differentiable in it.

    With `dual_clip` c > 1, tokens with A < 0 have -max(that minimum, c * A) instead: at most c * |A|, without gradient
    beyond.
    """
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage)
    if dual_clip is None:
        return loss
    return torch.where(is_bounded(ratio, advantage, dual_clip), -dual_clip * advantage, loss)


def cispo(logprobs: Tensor, ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """-clip(rho, 1 - clip_low, 1 + clip_high) * A * log pi a token (arXiv 2506.13585 eq. 4 and 5); the clipped ratio
    is a weight without gradient, so no token loses its gradient. Shape of `logprobs`, differentiable in it."""
    return -ratio.detach().clamp(1.0 - clip_low, 1.0 + clip_high) * advantage * logprobs


def is_bounded(ratio: Tensor, advantage: Tensor, dual_clip: float) -> Tensor:
    """Whether `dual_clip` took the token's gradient away (bool): rho above it with A < 0."""
    return (ratio > dual_clip) & (advantage < 0)


def is_clipped(ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Whether the clip took the token's gradient away (bool): rho above the upper edge with A > 0, or below the
    lower edge with A < 0."""
    return ((ratio > 1.0 + clip_high) & (advantage > 0)) | ((ratio < 1.0 - clip_low) & (advantage < 0))
