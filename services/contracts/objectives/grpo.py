"""GRPO (arXiv 2402.03300, equation 3; unbiased advantages of arXiv 2503.20783): every rollout by its advantage."""

from __future__ import annotations

from services.contracts.objectives.base import Branch, Objective, Route, Standing, Terms, V
from services.contracts.objectives.paper import CLIP, paper
from services.contracts.objectives.settings import ALWAYS, POLICY, ObjectiveSettings


class Grpo(Objective):
    name = "grpo"
    takes = ALWAYS | POLICY
    presets = {"paper-grpo": paper(name, 8, 1e-6, CLIP)}

    def route(self, standing: Standing, section: ObjectiveSettings) -> Route:
        return "grpo"

    def token_loss(self, branch: Branch, terms: Terms[V], section: ObjectiveSettings) -> V:
        return policy_loss(terms, terms.advantage)


def policy_loss(terms: Terms[V], advantage: V) -> V:
    """l_grpo = min(pi_old / mu, cap) * clipped surrogate + KL from the initial model."""
    return terms.engine_correction() * terms.clipped_surrogate(advantage) + terms.reference_kl()
