"""What the self-teacher reads, as text: question, a correct sibling's solution, feedback (docs/algorithm.md, "SDPO
branch").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from services.contracts.messages import Question
from services.contracts.objectives.settings import QUESTION, ObjectiveSettings
from services.contracts.run_config import RunConfig
from services.contracts.thinking import without_thinking


@dataclass(frozen=True, slots=True)
class Wording:
    """The texts around solution and feedback; empty ones are left out. `{question}` in the closing is the question."""

    solution_heading: str
    feedback_heading: str
    closing: str

    @classmethod
    def of(cls, section: ObjectiveSettings) -> Self:
        return cls(section.teacher_solution_heading, section.teacher_feedback_heading, section.teacher_closing)


PAPER = Wording.of(ObjectiveSettings())
"""Those of arXiv 2604.02288, the defaults."""


def shown_solution(question: Question, config: RunConfig) -> str:
    """A row's solution as the teacher reads it; empty for none."""
    solution = question.solution or ""
    answer = without_thinking(solution, *config.thinking_markers)
    return solution.strip() if answer and config.objective.demonstration_thinking == "keep" else answer


def teacher_text(
    prompt: str, solution: str | None, feedback: str | None, further: Sequence[str] = (), *, wording: Wording = PAPER
) -> str:
    """The user message of the teacher's prompt. Without solution and feedback it is the question itself.

    `solution` is as the learner's `shown_response` or `shown_solution` returns it, and so are `further` ones, which are
    numbered.
    """
    if solution is None and feedback is None:
        return prompt
    parts = [prompt]
    if solution is not None and not further:
        parts += [wording.solution_heading, solution]
    elif solution is not None:
        heading = wording.solution_heading.removesuffix(":")
        for number, text in enumerate((solution, *further), start=1):
            parts += [f"{heading} {number}:".strip(), text]
    if feedback is not None:
        parts += [wording.feedback_heading, feedback.strip()]
    parts.append(wording.closing.replace(QUESTION, prompt))
    return "\n\n".join(part for part in parts if part)
