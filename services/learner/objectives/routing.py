"""Sample routing and the choice of demonstrations (arXiv 2604.02288, section 3.1), for every objective.

Plain Python on one group: no tensors. Rollouts that an infrastructure fault excluded take no part: they are routed
nowhere and are never a sibling.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from services.contracts.errors import TurnoutError
from services.contracts.objectives.base import Route, Standing
from services.contracts.objectives.registry import OBJECTIVES
from services.contracts.run_config import ObjectiveSection
from services.learner.objectives.edit_distance import edit_distance


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """What routing needs to know of one group of G rollouts. All lists have G entries."""

    correct: Sequence[bool]
    """Whether each is correct, if it is usable."""
    usable: Sequence[bool]
    """False for rollouts excluded because of an infrastructure fault."""
    has_feedback: Sequence[bool]
    """Whether the verifier returned feedback text."""
    num_tokens: Sequence[int]
    """Response lengths, for demonstration `shortest`."""
    demonstrates: Sequence[bool] | None = None
    """Whether a response leaves anything to read once its thinking is taken out; None: all of them."""
    _: KW_ONLY
    has_solution: bool = False
    """Whether the question's row has a solution to read, for demonstration `reference`."""
    tokens: Sequence[Sequence[int]] = ()
    """The responses' tokens, for demonstration `closest`."""
    surprise: Sequence[float] = ()
    """Mean of -log mu over each response, nats, for demonstration `likeliest`."""
    texts: Sequence[str] = ()
    """The responses as a teacher reads them. Several demonstrations, or a rollout and a wrong hint, must not be the
    same; empty: all differ."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where one rollout goes, and what its teacher reads."""

    route: Route
    correct: bool
    """c_i: correct by its verdict (`Verdict.solves`), and usable."""
    teacher_information: bool
    """m_i: a demonstration or feedback exists for this rollout, or its teacher needs neither."""
    needs_teacher: bool
    """A teacher pass is to be made (m_i = 1 and the objective asks for it)."""
    demonstrations: tuple[int, ...]
    """Indices of the correct siblings whose responses the teacher reads, in its prompt's order. Never the rollout
    itself."""
    feedback: bool
    """Whether the teacher reads this rollout's own feedback."""
    reference: bool = False
    """Whether the teacher reads the row's own solution, no sibling being correct."""
    share_correct: float = 0.0
    """p: share of the group's usable rollouts that are correct."""

    wrong_hint: int | None = None
    """Index of the failed sibling that the teacher reads as if it were correct, for the contrast; None for none."""

    @property
    def demonstration(self) -> int | None:
        """The first of `demonstrations`; None for none."""
        return self.demonstrations[0] if self.demonstrations else None


def route_group(outcome: GroupOutcome, objective: ObjectiveSection, seed: str) -> list[Assignment]:
    """Assign each rollout of a group to a branch of the objective.

    Args:
        seed: makes demonstration `random` repeatable; use the run's seed and the group's identifier.
    """
    num_rollouts = len(outcome.correct)
    columns = (outcome.usable, outcome.has_feedback, outcome.num_tokens, outcome.demonstrates or outcome.usable)
    if any(len(column) != num_rollouts for column in columns):
        raise TurnoutError("A group's correct, usable, has_feedback, num_tokens and demonstrates differ in length.")
    correct = [right and usable for right, usable in zip(outcome.correct, outcome.usable, strict=True)]
    return [_assign(index, correct, outcome, objective, seed) for index in range(num_rollouts)]


def _assign(
    index: int, correct: list[bool], outcome: GroupOutcome, objective: ObjectiveSection, seed: str
) -> Assignment:
    if not outcome.usable[index]:
        return Assignment("none", False, False, False, (), False)
    siblings = teaching_siblings(index, correct, outcome)
    solution, feedback = teacher_information(index, bool(siblings), outcome, objective)
    # A model that knows more than the policy can teach without anything to read.
    informed, reference = solution or feedback or objective.demonstration == "none", solution and not siblings
    rules, standing = OBJECTIVES[objective.name], Standing(correct[index], informed, sum(correct) / sum(outcome.usable))
    route, needs_teacher = rules.route(standing, objective), rules.asks_teacher(standing, objective)
    shown: tuple[int, ...] = ()
    if solution and siblings:
        choice = objective.demonstration if needs_teacher or objective.demonstration != "closest" else "first"
        shown = choose_demonstrations(index, siblings, outcome, choice, seed, objective.demonstrations)
    wrong = None
    if objective.wrong_hint and route == "sdpo" and solution:
        wrong = choose_wrong_hint(index, correct, outcome)
    return Assignment(
        route, correct[index], informed, needs_teacher, shown, feedback, reference, standing.share_correct, wrong
    )


def without_teacher(assignment: Assignment, objective: ObjectiveSection) -> Assignment:
    """What becomes of a rollout whose teacher cannot be asked: as if it had no information."""
    standing = Standing(assignment.correct, False, assignment.share_correct)
    route = OBJECTIVES[objective.name].route(standing, objective)
    return Assignment(route, assignment.correct, False, False, (), False, share_correct=assignment.share_correct)


def teacher_information(
    index: int, has_sibling: bool, outcome: GroupOutcome, objective: ObjectiveSection
) -> tuple[bool, bool]:
    """f_i: whether to show a solution (a correct sibling's, or the row's own if `reference` and there is none), and
    whether to show the rollout's own feedback.

    feedback `none`: solutions only. `alone`: feedback only. `with_solution`: whatever exists of both. `fallback`:
    feedback only if there is no solution.
    """
    has_feedback = outcome.has_feedback[index]
    if objective.feedback == "alone":
        return False, has_feedback
    if objective.demonstration == "none":
        return False, False
    solution = has_sibling or (objective.demonstration == "reference" and outcome.has_solution)
    if objective.feedback == "with_solution":
        return solution, has_feedback
    if objective.feedback == "fallback":
        return solution, has_feedback and not solution
    return solution, False


def teaching_siblings(index: int, correct: list[bool], outcome: GroupOutcome) -> list[int]:
    """Correct siblings of rollout `index` that have something to show."""
    shows = outcome.demonstrates or [True] * len(correct)
    return [sibling for sibling, right in enumerate(correct) if right and shows[sibling] and sibling != index]


def choose_demonstrations(
    index: int, siblings: Sequence[int], outcome: GroupOutcome, choice: str, seed: str, number: int = 1
) -> tuple[int, ...]:
    """Which of the correct `siblings` of rollout `index` to show, the best first: `number` with different texts, or
    all there are."""
    ranked = _ranked(index, siblings, outcome, choice, seed) if len(siblings) > 1 else siblings
    different: dict[str | int, int] = {}
    for sibling in ranked:
        different.setdefault(outcome.texts[sibling] if outcome.texts else sibling, sibling)
    return tuple(different.values())[:number]


def choose_wrong_hint(index: int, correct: list[bool], outcome: GroupOutcome) -> int | None:
    """The first failed sibling of rollout `index` that has something to show, other than what the rollout says itself.
    None if there is none."""
    shows, texts = outcome.demonstrates or [True] * len(correct), outcome.texts or range(len(correct))
    for sibling, (right, usable) in enumerate(zip(correct, outcome.usable, strict=True)):
        if usable and not right and sibling != index and shows[sibling] and texts[sibling] != texts[index]:
            return sibling
    return None


def _ranked(index: int, siblings: Sequence[int], outcome: GroupOutcome, choice: str, seed: str) -> list[int]:
    """The siblings, those to show first. Ties are in their order."""
    if choice == "random":
        rng, left, drawn = random.Random(f"{seed}/{index}"), list(siblings), list[int]()
        while left:
            drawn.append(rng.choice(left))
            left.remove(drawn[-1])
        return drawn
    if choice == "shortest":
        return sorted(siblings, key=lambda sibling: outcome.num_tokens[sibling])
    if choice == "closest":
        return sorted(siblings, key=lambda sibling: edit_distance(outcome.tokens[sibling], outcome.tokens[index]))
    if choice == "likeliest":
        return sorted(siblings, key=lambda sibling: outcome.surprise[sibling])
    return list(siblings)
