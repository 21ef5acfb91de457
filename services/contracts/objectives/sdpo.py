"""SDPO (arXiv 2601.20802, section 3): rollouts with teacher information are distilled from it, others add nothing."""

from __future__ import annotations

from services.contracts.objectives.base import Branch, Objective, Route, Standing, Terms, V, Weighting
from services.contracts.objectives.paper import DISTIL, paper
from services.contracts.objectives.settings import ALWAYS, DIVERGENCE, TEACHER, WEIGHTS, ObjectiveSettings


class Sdpo(Objective):
    name = "sdpo"
    takes = ALWAYS | TEACHER | DIVERGENCE | WEIGHTS | {"distil"}
    presets = {"paper-sdpo": paper(name, 32, 1e-5, DISTIL)}

    def route(self, standing: Standing, section: ObjectiveSettings) -> Route:
        wanted = section.distil == "all" or (section.distil == "correct") == standing.correct
        return "sdpo" if standing.informed and wanted else "none"

    def weighting(self, section: ObjectiveSettings) -> Weighting | None:
        return Weighting.of(section, 0.0)

    def teaches_alone(self, section: ObjectiveSettings) -> bool:
        return section.feedback != "none" or section.demonstration in ("reference", "none")

    def token_loss(self, branch: Branch, terms: Terms[V], section: ObjectiveSettings) -> V:
        return terms.weight * distillation_loss(terms)


def distillation_loss(terms: Terms[V]) -> V:
    """l_sdpo = D(p, q) * min(pi_theta / pi_old, cap) * min(pi_old / mu, cap)."""
    return terms.divergence() * terms.capped_ratio() * terms.engine_correction()
