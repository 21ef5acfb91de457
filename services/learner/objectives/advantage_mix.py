"""Advantage mix: the SRPO paper's control, both signals in one advantage (method section 7; arXiv 2601.20802).

SDPO's gradient is a policy gradient whose advantage at a token is how much likelier the teacher finds it:
A_sdpo(y_t) = log q(y_t) - log p(y_t). The control adds it to GRPO's advantage and steps along the sum:

    A_t = lambda * A_i + (1 - lambda) * m_i * (log q(y_t) - log p(y_t))

in the clipped surrogate of section 3 with its engine correction. Rollouts without teacher information (m_i = 0) have no
second term, so they count with lambda * A_i. Every usable rollout counts in the denominator.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixed_advantage(advantage: Tensor, teacher: Tensor, student: Tensor, informed: Tensor, share: float) -> Tensor:
    """A_t as above; no gradient.

    Args:
        advantage: A_i at each token, [n].
        teacher, student: log q(y_t) and log p(y_t) of the sampled tokens, [n]; `teacher` is not read where
            `informed` is False.
        informed: m_i at each token, [n], bool.
        share: lambda in [0, 1].

    Returns:
        [n].
    """
    distilled = torch.where(informed, teacher.detach() - student.detach(), 0.0)
    return share * advantage.detach() + (1.0 - share) * distilled
