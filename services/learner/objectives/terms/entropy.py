"""Entropy of a categorical distribution (arXiv 2604.02288, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_nats(logits: Tensor) -> Tensor:
    """H = -sum_v q(v) log q(v) over the whole vocabulary: logits [..., vocabulary] -> [...], nats.

    Computed as log-sum-exp minus the expected logit, so that one-hot distributions give 0 and not NaN. Logits may be
    -inf.
    """
    normaliser = logits.logsumexp(-1, keepdim=True)
    weights = (logits - normaliser).exp_()
    return (normaliser.squeeze(-1) - expected_logit(weights, logits)).clamp(min=0.0)


def expected_logit(probabilities: Tensor, logits: Tensor) -> Tensor:
    """sum_v q(v) * logit(v) along the last dimension: both [..., vocabulary] -> [...]; logits may be -inf.

    0 * -inf counts as 0. Only distributions that have such a term pay for a second copy of their logits.
    """
    expected = torch.linalg.vecdot(probabilities, logits)
    if not bool(expected.isnan().any()):
        return expected
    return torch.linalg.vecdot(probabilities, logits.clamp(min=torch.finfo(logits.dtype).min))
