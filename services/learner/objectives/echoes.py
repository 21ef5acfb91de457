"""Finds responses that repeat how the teacher was asked.

The teacher reads headings that the policy never sees, such as "Correct solution:". A small model that reads them
answers in their style ("The correct answer is ..."), and self-distillation teaches this style as well. If it spreads,
the policy imitates how its teacher was asked rather than what it knows (docs/smollm2.md).
"""

from __future__ import annotations

import re

from services.contracts.messages import Question
from services.contracts.objectives.settings import QUESTION, ObjectiveSettings

MIN_LETTERS = 5
"""Shorter words, such as "the", say nothing about where a style comes from."""
_WORD = re.compile(r"[^\W\d_]+")


def words_of(text: str) -> frozenset[str]:
    """The words that can tell a style, in lower case."""
    return frozenset(word for word in _WORD.findall(text.lower()) if len(word) >= MIN_LETTERS)


def headings(section: ObjectiveSettings) -> str:
    """What the teacher reads around solution and feedback."""
    shown = [section.teacher_solution_heading, section.teacher_closing.replace(QUESTION, "")]
    return " ".join([*shown, section.teacher_feedback_heading if section.feedback != "none" else ""])


def num_echoes(question: Question, responses: list[str], section: ObjectiveSettings) -> int:
    """Number of responses with a word of the teacher's headings that their question's messages do not have."""
    asked = " ".join([question.system or "", *(turn.content for turn in question.turns), question.prompt])
    telling = words_of(headings(section)) - words_of(asked)
    return sum(not telling.isdisjoint(words_of(response)) for response in responses)
