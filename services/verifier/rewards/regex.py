"""Regular expression: the judged part of the reply must match the question's pattern.

`answer` is the pattern (Python's `re`). `tests` may be {"full": true, "ignore_case": true, "where": "answer"}: with
`full` the whole part must match; `where` is as in `exact`. The worker's time limit stops catastrophic backtracking.
"""

from __future__ import annotations

from services.contracts.judgement import Judgement
from services.contracts.messages import Question
from services.contracts.questions.forms import regex_pattern
from services.verifier.rewards.registry import register
from services.verifier.rewards.replies import no_answer, reply_part, shorten


@register("regex", supervised=True)
def judge_regex(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 if the pattern matches, else 0. `parsed_answer` is the match."""
    pattern, options = regex_pattern(question)
    part = reply_part(response_text, options.where)
    match = None
    if part is not None:
        match = pattern.fullmatch(part) if options.full else pattern.search(part)
    feedback = ""
    if part is None:
        feedback = no_answer(truncated)
    elif match is None:
        feedback = f"The answer {shorten(part, 80)!r} does not have the form that is asked for."
    return Judgement(
        reward=float(match is not None),
        correct=match is not None,
        parsed_answer=shorten(match[0] if match else part or "", 400),
        format_ok=part is not None,
        feedback=feedback,
    )
