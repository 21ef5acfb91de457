"""Multiple choice: the letter between the last <answer> and the next </answer>."""

from __future__ import annotations

import re
import string
from typing import Final

from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.forms import mcq_letter
from services.verifier.rewards.registry import register
from services.verifier.rewards.replies import no_answer, shorten, tagged_answer

_AT_END: Final = re.compile(r"<answer>\s*([A-Z])\s*</answer>\s*\Z")
_PUBLISHED: Final = frozenset("ABCD")
"""Options of the published questions. A row whose answer is another letter may have options up to Z."""


@register("mcq")
def judge_mcq(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 if the tagged answer is the letter, else 0. Feedback does not reveal the letter."""
    letter = mcq_letter(question)
    letters = _PUBLISHED if letter in _PUBLISHED else frozenset(string.ascii_uppercase)
    answer = tagged_answer(response_text)
    correct = answer == letter
    feedback = ""
    if answer is None:
        feedback = no_answer(truncated)
    elif not correct and answer in letters:
        feedback = f"{answer} is not the right option."
    elif not correct:
        which = "letter (A, B, C or D)" if letters is _PUBLISHED else "capital letter"
        feedback = f"The answer must be one {which} and nothing else, not {shorten(answer, 60)!r}."
    well_formed = _AT_END.search(response_text)
    return Judgement(
        reward=float(correct),
        correct=correct,
        parsed_answer=shorten(answer or ""),
        format_ok=well_formed is not None and well_formed[1] in letters,
        feedback=feedback,
    )
