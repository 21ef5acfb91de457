"""Importance ratios per token: engine correction and policy ratio (docs/algorithm.md, "GRPO branch" and "SDPO branch").

All arguments are log-probabilities of the sampled tokens, any one shape, natural log, float32 or float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log ratios are cut at +-20 (a factor of 5e8) so that one absurd token cannot overflow the loss."""


def policy_ratio(logprobs: Tensor, old: Tensor) -> Tensor:
    """rho = pi_theta / pi_old. Differentiable in `logprobs`."""
    return (logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_mean(log_ratio: Tensor, owner: Tensor, num_sequences: int) -> Tensor:
    """Mean over each sequence's tokens, given back to each of them: the log of GSPO's s_i (arXiv 2507.18071, eq. 7).

    Args:
        log_ratio: log pi_theta - log pi_old of whole sequences, [n]; no gradient.
        owner: number of the sequence that each token belongs to, [n], int64, below `num_sequences`.

    Returns:
        [n].
    """
    totals = log_ratio.new_zeros(num_sequences).index_add_(0, owner, log_ratio.detach())
    lengths = torch.zeros_like(totals).index_add_(0, owner, torch.ones_like(log_ratio))  # a GPU's bincount waits
    return totals[owner] / lengths[owner]


def sequence_ratio(logprobs: Tensor, mean: Tensor) -> Tensor:
    """s_i as a ratio of each token: the value of `exp(mean)`, with gradient s_i to each token's log-probability.

    This is GSPO-token (arXiv 2507.18071, section 4.3). Summed over a response whose tokens have one advantage, it has
    GSPO's own gradient: |y_i| * s_i * A_i * (1 / |y_i|) * sum of grad log pi_theta.
    """
    return (logprobs - logprobs.detach() + mean.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def reference_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """k3 estimate of KL(pi_theta || pi_ref) a token (arXiv 2402.03300, eq. 4): r - 1 - log r, r = pi_ref / pi_theta.

    Never negative; differentiable in `logprobs`.
    """
    return _k3(reference.detach() - logprobs)


def engine_correction(old: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """min(pi_old / mu, cap): truncated importance sampling between learner and rollout engine. No gradient."""
    return policy_ratio(old.detach(), behaviour.detach()).clamp(max=cap)


def in_band(log_ratio: Tensor, low: float, high: float) -> Tensor:
    """Whether a ratio, of which this is the log, is within [low, high] (bool); NaN is not."""
    return (log_ratio >= math.log(low)) & (log_ratio <= math.log(high))


def mismatch_kl(old: Tensor, behaviour: Tensor) -> Tensor:
    """k3 estimate of KL(mu || pi_old) a token: r - 1 - log r with r = pi_old / mu. Never negative, no gradient."""
    return _k3(old.detach() - behaviour.detach())


def _k3(log_ratio: Tensor) -> Tensor:
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio
