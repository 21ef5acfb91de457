"""Entropy of a categorical distribution (method section 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_nats(logits: Tensor) -> Tensor:
    """H = -sum_v q(v) log q(v) over the whole vocabulary: logits [..., vocabulary] -> [...], nats.

    Computed as log-sum-exp minus the expected logit, so that one-hot distributions give 0 and not NaN.
    """
    normaliser = logits.logsumexp(-1, keepdim=True)
    weights = (logits - normaliser).exp_()
    return (normaliser.squeeze(-1) - torch.linalg.vecdot(weights, logits)).clamp(min=0.0)
