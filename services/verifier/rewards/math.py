"""Mathematics: the last answer of the reply equals the reference, by math-verify (which uses SymPy).

`answer` is the reference, LaTeX or plain. Judged is the text between the answer tags where the reply has them; else the
last \\boxed{}, and where that is not right, all that math-verify finds at the reply's end (it joins several boxes to a
set). Short texts can make SymPy compute for ever (`9^{9^{9^9}}`), so this runs in a supervised worker and math-verify's
own alarms are off.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from services.contracts.messages import Question
from services.verifier.rewards.registry import Judgement, QuestionError, register
from services.verifier.rewards.replies import no_answer, shorten, tagged_answer

LONGEST_REPLY: Final = 8000
"""Characters at a reply's end in which an answer is looked for."""
_DELIMITERS: Final = ("$", r"\boxed", r"\(", r"\[")


def warm() -> None:
    """Load SymPy and its grammar, which takes seconds."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its alarms are off
    judge_math(Question(id="", kind="math", prompt="", answer=r"\frac{1}{2}"), "It is $0.5$.", False)


@register("math", supervised=True, warm=warm)
def judge_math(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 where the answers are mathematically equal, else 0."""
    reference = _parse(_as_formula(question.answer))
    if not reference:
        raise QuestionError(
            f"Question {question.id}: answer is not a formula.", remedy="Correct the dataset's row, or use kind exact."
        )
    found: list[Any] = []
    correct = False
    for text in _candidates(response_text):
        found = _parse(text) or found
        correct = correct or (bool(found) and _equal(reference, found))
    shown = shorten(found[-1], 200) if found and isinstance(found[-1], str) else ""
    feedback = ""
    if not found:
        feedback = no_answer(truncated)
    elif not correct:
        feedback = f"The answer {shorten(shown, 80)} is not right."
    return Judgement(
        reward=float(correct), correct=correct, parsed_answer=shown, format_ok=bool(found), feedback=feedback
    )


def _candidates(reply: str) -> list[str]:
    """Texts to read the answer from; the first that is right counts."""
    tagged = tagged_answer(reply)
    if tagged is not None:
        return [_as_formula(tagged[-LONGEST_REPLY:])]
    end = reply[-LONGEST_REPLY:]
    return [box, end] if (box := _last_box(end)) else [end]


def _last_box(text: str) -> str:
    """The last \\boxed{...} with its braces balanced; empty for none."""
    start = text.rfind(r"\boxed{")
    depth = 0
    for position in range(start, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if text[position] == "}" and depth == 0:
            return text[start : position + 1]
    return ""


def _as_formula(text: str) -> str:
    return text if any(sign in text for sign in _DELIMITERS) else f"${text.strip()}$"


def _parse(text: str) -> list[Any]:
    """Readings of the formula in `text`, its wording last; [] where there is none."""
    from math_verify import parse

    return list(parse(text, parsing_timeout=None))


def _equal(reference: list[Any], found: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(reference, found, timeout_seconds=None))
