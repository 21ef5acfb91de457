"""What several rewards share: reading a reply's answer, reading a question's settings, writing feedback."""

from __future__ import annotations

import json
from typing import Any, Final

from services.contracts.messages import Question
from services.verifier.rewards.registry import QuestionError

OPEN, CLOSE = "<answer>", "</answer>"
NO_ANSWER: Final = "No answer was found: end the reply with <answer>...</answer>."
CUT_OFF: Final = "The reply was cut off at the length limit before its answer: be briefer."


def tagged_answer(text: str) -> str | None:
    """Text between the LAST <answer> and the next </answer>, stripped; None where either is missing."""
    start = text.rfind(OPEN)
    if start < 0:
        return None
    end = text.find(CLOSE, start)
    return text[start + len(OPEN) : end].strip() if end >= 0 else None


def no_answer(truncated: bool) -> str:
    """Feedback for a reply without an answer."""
    return CUT_OFF if truncated else NO_ANSWER


def shorten(text: str, limit: int = 120) -> str:
    """`text` with its middle cut out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def settings(question: Question) -> dict[str, Any]:
    """The question's `tests` as a JSON object; {} for datasets that write nothing, "-" or plain text there.

    Raises:
        QuestionError: it starts like a JSON object and does not parse.
    """
    if not question.tests.lstrip().startswith("{"):
        return {}
    try:
        found: dict[str, Any] = json.loads(question.tests)
    except (ValueError, RecursionError) as error:
        raise QuestionError(
            f"Question {question.id}: tests is not valid JSON ({error}).", remedy="Correct the dataset's row."
        ) from error
    return found


def reply_part(question: Question, text: str, options: dict[str, Any]) -> str | None:
    """The part of a reply that is judged: setting `where` is "answer" (the tags), "reply" (all), or unset.

    Unset takes the tagged answer where there is one and the whole reply otherwise. None: the tags are missing.
    """
    where = options.get("where")
    if where not in (None, "answer", "reply"):
        raise QuestionError(
            f"Question {question.id}: tests.where is {where!r}.", remedy='Use "answer", "reply" or leave it out.'
        )
    if where == "reply":
        return text.strip()
    tagged = tagged_answer(text)
    if tagged is None and where is None and OPEN not in text:
        return text.strip()
    return tagged
