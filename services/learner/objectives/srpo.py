"""SRPO: both branches under one denominator (method section 6; arXiv 2604.02288 section 3)."""

from __future__ import annotations

from torch import Tensor


def joint_objective(grpo: Tensor, sdpo: Tensor, weights: Tensor, num_routed_tokens: float) -> Tensor:
    """(sum of l_grpo + sum of w * l_sdpo) / number of routed response tokens of the WHOLE mini-batch.

    `grpo` and `sdpo` joined with `weights` = 1 are also the objectives `grpo`, `sdpo` and `advantage_mix`, which lack
    one of the branches.

    Args:
        grpo: token losses of the GRPO branch, [n].
        sdpo: token losses of the SDPO branch, [m].
        weights: dynamic weights, [m]; no gradient.
        num_routed_tokens: n + m summed over all micro-batches and ranks, so that the parts computed by micro-batches
            and ranks add up to the objective.

    Returns:
        Scalar.
    """
    return (grpo.sum() + (weights.detach() * sdpo).sum()) / num_routed_tokens
