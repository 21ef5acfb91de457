"""Generalised Jensen-Shannon divergence between student p and teacher q (arXiv 2601.20802 section 3).

    M = (1 - alpha) * p + alpha * q
    D_alpha = (1 - alpha) * KL(p || M) + alpha * KL(q || M)          0 < alpha < 1
    D_0 = KL(q || p) (forward)          D_1 = KL(p || q) (reverse)

alpha = 0.5 is the Jensen-Shannon divergence, within [0, ln 2]. The ends are the limits of
D_alpha / (alpha (1 - alpha)), not of D_alpha itself, which goes to 0 there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def generalised_divergence(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """D_alpha along the last dimension.

    Args:
        student, teacher: log-probabilities of the same outcomes, [..., buckets], each summing to 1; float32 or float64.
            -inf, the log of a zero probability, counts as `log_floor` does: 0 log 0 is 0, and an end's divergence,
            which is infinite if only one side has no mass, stays finite.
        alpha: in [0, 1].

    Returns:
        [...], nats, >= 0 up to rounding. Differentiable in `student`, with gradient 0 where it is -inf; the teacher is
        detached.
    """
    student, teacher = log_floor(student), log_floor(teacher.detach())
    if alpha == 0.0:
        return _kl(teacher, student)
    if alpha == 1.0:
        return _kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-alpha), teacher + math.log(alpha))
    return (1.0 - alpha) * _kl(student, mixture) + alpha * _kl(teacher, mixture)


def _kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(left || right) of log-probabilities along the last dimension."""
    return (left.exp() * (left - right)).sum(-1)


def log_floor(logprobs: Tensor) -> Tensor:
    """Log-probabilities, of any shape, with the log of the type's smallest normal number in place of -inf. No gradient
    reaches what was -inf."""
    return logprobs.masked_fill(logprobs == -math.inf, math.log(torch.finfo(logprobs.dtype).tiny))


def log_tail(mass: Tensor) -> Tensor:
    """Log of a tail bucket's mass, floored at the type's smallest normal number so that log(0) is finite."""
    return mass.clamp(min=torch.finfo(mass.dtype).tiny).log()
