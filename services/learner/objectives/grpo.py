"""GRPO: the token loss of the reward-aligned branch (method section 3; arXiv 2402.03300 eq. 3 without KL).

`importance_ratio` is each token's own, or GSPO's one of the whole response (arXiv 2507.18071)."""

from __future__ import annotations

from torch import Tensor

from services.contracts.run_config import ObjectiveSection
from services.learner.objectives.terms.ratios import engine_correction, policy_ratio, sequence_ratio
from services.learner.objectives.terms.surrogate import clipped_surrogate


def importance_ratio(logprobs: Tensor, old: Tensor, sequence: Tensor | None) -> Tensor:
    """rho of each token, or s_i where `sequence` (see `grpo_token_loss`) is given."""
    return policy_ratio(logprobs, old.detach()) if sequence is None else sequence_ratio(logprobs, sequence)


def grpo_token_loss(
    logprobs: Tensor,
    old: Tensor,
    behaviour: Tensor,
    advantage: Tensor,
    objective: ObjectiveSection,
    sequence: Tensor | None = None,
) -> Tensor:
    """min(pi_old / mu, cap) * clipped surrogate, a token.

    Args:
        logprobs: log pi_theta of the sampled tokens, [n], float32 or float64; the only differentiable argument.
        old, behaviour, advantage: log pi_old, log mu and the rollout's advantage, [n].
        sequence: mean log ratio of each token's response (`ratios.sequence_mean`), [n]; None for ratios by token.

    Returns:
        [n], not yet divided by the mini-batch's number of tokens.
    """
    ratio = importance_ratio(logprobs, old, sequence)
    loss = clipped_surrogate(ratio, advantage.detach(), objective.clip_low, objective.clip_high)
    return engine_correction(old, behaviour, objective.importance_weight_cap) * loss
