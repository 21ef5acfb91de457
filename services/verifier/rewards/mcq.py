"""Multiple choice: the letter between the last <answer> and the next </answer> (method section 10)."""

from __future__ import annotations

import re
from typing import Final

from services.contracts.messages import Question
from services.verifier.rewards.registry import Judgement, register
from services.verifier.rewards.replies import no_answer, shorten, tagged_answer

_LETTERS: Final = frozenset("ABCD")
_WELL_FORMED: Final = re.compile(r"<answer>\s*[ABCD]\s*</answer>\s*\Z")


@register("mcq")
def judge_mcq(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 where the tagged answer is the letter, else 0. Feedback does not give the letter away."""
    answer = tagged_answer(response_text)
    correct = answer is not None and answer == question.answer.strip()
    feedback = ""
    if answer is None:
        feedback = no_answer(truncated)
    elif not correct and answer in _LETTERS:
        feedback = f"{answer} is not the right option."
    elif not correct:
        feedback = f"The answer must be one letter (A, B, C or D) and nothing else, not {shorten(answer, 60)!r}."
    return Judgement(
        reward=float(correct),
        correct=correct,
        parsed_answer=shorten(answer or ""),
        format_ok=_WELL_FORMED.search(response_text) is not None,
        feedback=feedback,
    )
