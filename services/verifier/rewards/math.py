"""Mathematics: the reply's answer must equal the reference. docs/rewards.md defines what counts as equal.

`answer` is the reference, in LaTeX or plain text. `mathematics.answers` finds the reply's answer,
`services.contracts.questions.formulas` parses both, and `mathematics.equality` compares them. The work for any text is
counted and bounded; the supervised worker is a second line of defence.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.forms import math_answer
from services.contracts.questions.formulas.reader import read
from services.contracts.questions.formulas.tree import Node, Unreadable
from services.verifier.rewards.mathematics.answers import answer_of, without_lead
from services.verifier.rewards.mathematics.equality import equal
from services.verifier.rewards.registry import register
from services.verifier.rewards.replies import no_answer, shorten


def warm() -> None:
    """Load what the first comparison needs."""
    judge_math(Question(id="", kind="math", prompt="", answer=r"\sqrt{2} x"), "It is $x 2^{0.5}$.", False)


@register("math", supervised=True, warm=warm)
def judge_math(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 if the answers are mathematically equal, else 0."""
    reference = math_answer(question)
    text = answer_of(response_text)
    found = _read(text)
    correct = bool(found) and equal(reference, found)
    if (
        not correct
        and text
        and (not found or found[0].kind in ("words", "ratio"))
        and (bare := _read(without_lead(text)))
    ):
        found, correct = bare, equal(reference, bare)
    shown = shorten((text or "").strip(), 200)
    feedback = ""
    if not shown:
        feedback = no_answer(truncated)
    elif not found:
        feedback = f"The answer {shorten(shown, 80)} cannot be read."
    elif not correct:
        feedback = f"The answer {shorten(shown, 80)} is not right."
    return Judgement(
        reward=float(correct), correct=correct, parsed_answer=shown, format_ok=bool(found), feedback=feedback
    )


def _read(text: str | None) -> Sequence[Node]:
    try:
        return read(text) if text else ()
    except Unreadable:
        return ()
