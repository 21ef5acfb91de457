"""Importance ratios per token: engine correction and policy ratio (method sections 3 and 4).

All arguments are log-probabilities of the sampled tokens, any one shape, natural log, float32 or float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log ratios are cut at +-20 (a factor of 5e8) so that one absurd token cannot overflow the loss."""


def policy_ratio(logprobs: Tensor, old: Tensor) -> Tensor:
    """rho = pi_theta / pi_old. Differentiable in `logprobs`."""
    return (logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def engine_correction(old: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """min(pi_old / mu, cap): truncated importance sampling between learner and rollout engine. No gradient."""
    return policy_ratio(old.detach(), behaviour.detach()).clamp(max=cap)


def mismatch_kl(old: Tensor, behaviour: Tensor) -> Tensor:
    """k3 estimate of KL(mu || pi_old) a token: r - 1 - log r with r = pi_old / mu. Never negative, no gradient."""
    log_ratio = (old.detach() - behaviour.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio
