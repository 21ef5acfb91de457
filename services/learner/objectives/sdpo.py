"""SDPO: the token loss of the self-distillation branch (method section 4; arXiv 2601.20802 section 3)."""

from __future__ import annotations

from torch import Tensor

from services.contracts.run_config import ObjectiveSection
from services.learner.objectives.terms.ratios import engine_correction, policy_ratio


def sdpo_token_loss(
    divergence: Tensor, logprobs: Tensor, old: Tensor, behaviour: Tensor, objective: ObjectiveSection
) -> Tensor:
    """Divergence * min(pi_theta / pi_old, cap) * min(pi_old / mu, cap), a token; both ratios without gradient.

    Args:
        divergence: D(p, q) at each response position (`divergence.generalised_divergence`), [n]; differentiable.
        logprobs, old, behaviour: log pi_theta, log pi_old and log mu of the sampled tokens, [n].

    Returns:
        [n], not yet weighted (`srpo`) nor divided by the mini-batch's number of tokens.
    """
    cap = objective.importance_weight_cap
    ratio = policy_ratio(logprobs.detach(), old.detach()).clamp(max=cap)
    return divergence * ratio * engine_correction(old, behaviour, cap)
