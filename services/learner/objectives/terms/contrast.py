"""Contrast of two readings of one teacher: q with a correct solution, q_w with a wrong one in its place.

    q*(v) is proportional to q(v) (q(v) / q_w(v))^k

The idea to contrast with a teacher that was given a wrong hint is that of arXiv 2606.11709. This equation is our own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contrast(right: Tensor, wrong: Tensor, strength: Tensor) -> Tensor:
    """Logits of q*, [n, vocabulary], from those of q and q_w. `strength` is k, [n]; where it is 0, q* is q.

    A token that either excludes, with logit -inf, keeps q's logit.
    """
    finite = torch.isfinite(right) & torch.isfinite(wrong)
    moved = right + strength[:, None].to(right.dtype) * (right - wrong)
    return torch.where(finite, moved, right)
