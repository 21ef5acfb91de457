"""SRPO (arXiv 2604.02288): failed rollouts with teacher information to SDPO, all others to GRPO.

z_sdpo = (1 - c) m          z_grpo = 1 - z_sdpo                                         section 3.1
L = (sum of z_grpo l_grpo + sum of z_sdpo w l_sdpo) / number of routed tokens           section 3
w = exp(-beta H) / mean of exp(-beta H), H the entropy of the teacher                   section 3.3
"""

from __future__ import annotations

from services.contracts.objectives import grpo, sdpo
from services.contracts.objectives.base import Branch, Objective, Route, Standing, Terms, V
from services.contracts.objectives.paper import CLIP, DISTIL, paper
from services.contracts.objectives.settings import ALWAYS, DIVERGENCE, POLICY, TEACHER, ObjectiveSettings


class Srpo(Objective):
    name = "srpo"
    takes = ALWAYS | POLICY | TEACHER | DIVERGENCE | {"beta"}
    presets = {"paper-srpo": paper(name, 32, 5e-6, CLIP | DISTIL | {"beta": 1.0})}

    def route(self, standing: Standing, section: ObjectiveSettings) -> Route:
        return "sdpo" if standing.informed and not standing.correct else "grpo"

    def is_weighted(self, section: ObjectiveSettings) -> bool:
        return section.beta > 0

    def token_loss(self, branch: Branch, terms: Terms[V], section: ObjectiveSettings) -> V:
        if branch == "grpo":
            return grpo.policy_loss(terms, terms.advantage)
        return terms.weight * sdpo.distillation_loss(terms)
