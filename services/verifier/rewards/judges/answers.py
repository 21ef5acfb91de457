"""Reads the judge model's answer: JSON as it was asked for, or the only verdict in a text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from services.contracts.thinking import without_thinking

LONGEST_FEEDBACK: Final = 1000
LONGEST_ANSWER: Final = 100_000
"""Characters of an answer that are searched for a verdict."""
MOST_BROKEN: Final = 100
"""Each may be as long as the rest of the answer, so more of them would take seconds."""
_OBJECT: Final = re.compile(r'\{\s*"')
"""How an object with a score begins. In LaTeX and code, most braces are followed by something else."""


class Answer(msgspec.Struct, frozen=True):
    """What the judge model says of a response."""

    score: float
    """On the scale that it was given."""
    feedback: str = ""


class UnreadableError(Exception):
    """The answer contains no verdict, several that differ, or a score beyond the scale."""


def read_answer(text: str, scale: tuple[float, float]) -> Answer:
    """The verdict in an answer; reasoning before it does not count.

    Raises:
        UnreadableError: says what is wrong.
    """
    found = list(_verdicts(without_thinking(text)[-LONGEST_ANSWER:]))
    if not found:
        raise UnreadableError("has no JSON object with a score")
    if len({verdict.score for verdict in found}) > 1:
        raise UnreadableError("has several scores")
    verdict = found[-1]
    if not scale[0] <= verdict.score <= scale[1]:
        raise UnreadableError(f"has the score {verdict.score:g}, outside {scale[0]:g} to {scale[1]:g}")
    return verdict


def _verdicts(text: str) -> Iterator[Answer]:
    """Every JSON object in the text that has a score, outermost ones only. Raises `UnreadableError`."""
    decoder, num_broken, end = json.JSONDecoder(), 0, 0
    while (found := _OBJECT.search(text, end)) is not None:
        try:
            value, end = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            end = found.start() + 1
            num_broken += 1
            if num_broken > MOST_BROKEN:
                raise UnreadableError(f"has more than {MOST_BROKEN} beginnings of broken JSON objects") from None
        else:
            if (verdict := _verdict(value)) is not None:
                yield verdict


def _verdict(value: dict[str, Any]) -> Answer | None:
    score, feedback = value.get("score"), value.get("feedback")
    if isinstance(score, str):
        try:
            score = float(score)
        except ValueError:
            return None
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        return None
    try:
        number = float(score)
    except OverflowError:
        return None
    if not math.isfinite(number):
        return None
    text = feedback.strip() if isinstance(feedback, str) else ""
    return Answer(number, text[:LONGEST_FEEDBACK].encode("utf-8", "replace").decode())
