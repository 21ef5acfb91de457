"""SRPO (arXiv 2604.02288): failed rollouts with teacher information to SDPO, all others to GRPO.

z_sdpo = (1 - c) m          z_grpo = 1 - z_sdpo                                         section 3.1
L = (sum of z_grpo l_grpo + sum of z_sdpo w l_sdpo) / number of routed tokens           section 3
w = exp(-beta H) / mean of exp(-beta H), H the entropy of the teacher                   section 3.3
"""

from __future__ import annotations

from typing import Final

from services.contracts.objectives import grpo, sdpo
from services.contracts.objectives.base import Branch, Objective, Route, Standing, Terms, V, Weighting
from services.contracts.objectives.paper import CLIP, DISTIL, paper
from services.contracts.objectives.settings import ALWAYS, DIVERGENCE, POLICY, TEACHER, WEIGHTS, ObjectiveSettings

HARD: Final = 0.5
"""A group of which fewer are correct is distilled as a whole by `routing: group`."""


class Srpo(Objective):
    name = "srpo"
    takes = ALWAYS | POLICY | TEACHER | DIVERGENCE | WEIGHTS | {"beta", "routing", "keep_contrast"}
    presets = {"paper-srpo": paper(name, 32, 5e-6, CLIP | DISTIL | {"beta": 1.0})}

    def route(self, standing: Standing, section: ObjectiveSettings) -> Route:
        wanted = {
            "sample": not standing.correct,
            "group": standing.share_correct < HARD,
            "failed_groups": standing.share_correct == 0.0,
        }
        return "sdpo" if standing.informed and wanted[section.routing] else "grpo"

    def keeps_contrast(self, section: ObjectiveSettings) -> bool:
        return section.keep_contrast > 0

    def weighting(self, section: ObjectiveSettings) -> Weighting | None:
        return Weighting.of(section, section.beta)

    def token_loss(self, branch: Branch, terms: Terms[V], section: ObjectiveSettings) -> V:
        if branch == "grpo":
            return grpo.policy_loss(terms, terms.advantage)
        loss = terms.weight * sdpo.distillation_loss(terms)
        if not self.keeps_contrast(section):
            return loss
        return loss + section.keep_contrast * (terms.engine_correction() * terms.clipped_surrogate(terms.contrast))
