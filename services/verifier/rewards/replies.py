"""Helpers that several rewards share: finding a reply's answer and writing feedback."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

OPEN, CLOSE = "<answer>", "</answer>"
NO_ANSWER: Final = "No answer was found: end the reply with <answer>...</answer>."
CUT_OFF: Final = "The reply was cut off at the length limit before its answer: be briefer."

NEVER_ANSWERED: Final = "The thinking never ended: close it, then write the answer."
THOUGHT_TOO_LONG: Final = "The reply was cut off at the length limit while it was still thinking: think more briefly."


def tagged_answer(text: str) -> str | None:
    """Text between the LAST <answer> and the next </answer>, stripped; None if either is missing."""
    start = text.rfind(OPEN)
    if start < 0:
        return None
    end = text.find(CLOSE, start)
    return text[start + len(OPEN) : end].strip() if end >= 0 else None


def no_answer(truncated: bool) -> str:
    """Feedback for a reply without an answer."""
    return CUT_OFF if truncated else NO_ANSWER


def no_answer_after_thinking(truncated: bool) -> str:
    """Feedback for a reply whose thinking never ends."""
    return THOUGHT_TOO_LONG if truncated else NEVER_ANSWERED


def shorten(text: str, limit: int = 120) -> str:
    """`text`, with its middle cut out if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def reply_part(text: str, where: Literal["answer", "reply"] | msgspec.UnsetType) -> str | None:
    """The part of a reply to judge, by the setting `where`: "answer" (in the tags), "reply" (everything), or unset.

    If it is unset, the tagged answer if the reply has tags, otherwise the whole reply. None if the tags are incomplete.
    """
    if where == "reply":
        return text.strip()
    tagged = tagged_answer(text)
    if tagged is None and where is msgspec.UNSET and OPEN not in text:
        return text.strip()
    return tagged
