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

    0 * -inf counts as 0. One buffer of that size is made, as for a plain product; to look for -inf first would make a
    GPU wait.
    """
    return logits.clamp(min=torch.finfo(logits.dtype).min).mul_(probabilities).sum(-1)
