"""The form of a reply, whatever its answer: tags, a box, or a pattern. As a part of a reward, or a kind of its own.

`tests` is {"requires": ["answer", "boxed", "thinking"], "pattern": "..."}. Whether a reply has `thinking` is known to
`services.verifier.parts`, since no reward reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.forms import FormatSettings, format_settings
from services.verifier.rewards.mathematics.answers import boxed
from services.verifier.rewards.registry import register
from services.verifier.rewards.replies import CLOSE, OPEN, shorten, tagged_answer


@register("format", supervised=True)
def judge_format(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 if the reply has all that is required, else 0."""
    pattern, settings = format_settings(question)
    missing = list(_missing(settings, response_text))
    if pattern is not None and pattern.search(response_text) is None:
        missing.append(f"text of the form {shorten(pattern.pattern, 80)}")
    return of_format(missing)


def of_format(missing: list[str]) -> Judgement:
    """The judgement on a reply that lacks what `missing` names."""
    feedback = f"The reply lacks {' and '.join(missing)}." if missing else ""
    return Judgement(reward=float(not missing), correct=not missing, format_ok=not missing, feedback=feedback)


def _missing(settings: FormatSettings, text: str) -> Iterator[str]:
    if "answer" in settings.requires and not (text.count(OPEN) == text.count(CLOSE) == 1 and tagged_answer(text)):
        yield f"one answer in {OPEN}...{CLOSE}"
    if "boxed" in settings.requires and not (boxed(text) or "").strip():
        yield r"an answer in \boxed{...}"
