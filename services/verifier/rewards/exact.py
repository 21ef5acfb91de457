"""Exact text: the answer must equal the reference, except for white space at the ends and Unicode normalization.

`tests` may be {"accept": ["other", "answers"], "ignore_case": true, "where": "answer" | "reply"}. Without `where`, the
tagged answer is compared if the reply has <answer> tags, otherwise the whole reply.
"""

from __future__ import annotations

import unicodedata

from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.forms import exact_texts
from services.verifier.rewards.registry import register
from services.verifier.rewards.replies import no_answer, reply_part, shorten


@register("exact")
def judge_exact(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 if the judged part equals the answer or one of `accept`, else 0."""
    texts, options = exact_texts(question)
    part = reply_part(response_text, options.where)
    wanted = {_normal(text, options.ignore_case) for text in texts}
    correct = part is not None and _normal(part, options.ignore_case) in wanted
    feedback = ""
    if part is None:
        feedback = no_answer(truncated)
    elif not correct:
        feedback = f"The answer {shorten(part, 80)!r} is not right."
    return Judgement(
        reward=float(correct),
        correct=correct,
        parsed_answer=shorten(part or "", 400),
        format_ok=part is not None,
        feedback=feedback,
    )


def _normal(text: str, ignore_case: bool) -> str:
    text = unicodedata.normalize("NFC", text.strip())
    return unicodedata.normalize("NFC", text.casefold()) if ignore_case else text
