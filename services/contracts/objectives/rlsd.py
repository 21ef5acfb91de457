"""RLSD (arXiv 2604.03128): the reward gives a token's direction, the self-teacher its size.

GRPO's advantage is kept, and with it the sign of every token's update. The teacher, which reads a correct sibling or
feedback, only says how much of it a token deserves:

    A_t = A_i (1 - lambda + lambda w_t)          w_t = clip(exp(sign(A_i) (log q(y_t) - log p(y_t))), 1 - e, 1 + e)
"""

from __future__ import annotations

from services.contracts.objectives import grpo
from services.contracts.objectives.base import Branch, Objective, Route, Standing, Terms, V
from services.contracts.objectives.settings import ALWAYS, POLICY, TEACHER, ObjectiveSettings


class Rlsd(Objective):
    name = "rlsd"
    takes = ALWAYS | POLICY | TEACHER | {"rlsd_lambda", "rlsd_clip"}

    def route(self, standing: Standing, section: ObjectiveSettings) -> Route:
        return "grpo"

    def asks_teacher(self, standing: Standing, section: ObjectiveSettings) -> bool:
        return standing.informed

    def teaches(self, advantage: float, taught: bool, section: ObjectiveSettings) -> bool:
        return advantage != 0.0  # which the teacher only scales

    def token_loss(self, branch: Branch, terms: Terms[V], section: ObjectiveSettings) -> V:
        share, advantage = section.rlsd_lambda, terms.advantage
        return grpo.policy_loss(terms, (1.0 - share) * advantage + share * (advantage * terms.credit()))
