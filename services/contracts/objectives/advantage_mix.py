"""Advantage mix, the control of arXiv 2604.02288: both signals in one advantage.

SDPO's gradient is a policy gradient whose advantage at a token is how much likelier the teacher finds it (arXiv
2601.20802). The control adds it to GRPO's advantage and steps along the sum:

    A_t = lambda A_i + (1 - lambda) m_i (log q(y_t) - log p(y_t))
"""

from __future__ import annotations

from services.contracts.objectives import grpo
from services.contracts.objectives.base import Branch, Objective, Route, Standing, Terms, V
from services.contracts.objectives.settings import ALWAYS, POLICY, TEACHER, ObjectiveSettings


class AdvantageMix(Objective):
    name = "advantage_mix"
    takes = ALWAYS | POLICY | TEACHER | {"mix_lambda"}

    def route(self, standing: Standing, section: ObjectiveSettings) -> Route:
        return "grpo"

    def asks_teacher(self, standing: Standing, section: ObjectiveSettings) -> bool:
        return standing.informed

    def teaches(self, advantage: float, taught: bool, section: ObjectiveSettings) -> bool:
        share = section.mix_lambda
        return (taught and share < 1.0) or (advantage != 0.0 and share > 0.0)

    def token_loss(self, branch: Branch, terms: Terms[V], section: ObjectiveSettings) -> V:
        share = section.mix_lambda
        return grpo.policy_loss(terms, share * terms.advantage + (1.0 - share) * terms.teacher_gap())
