"""Finds regular expressions that take exponential time, by trying them.

A repeated group that contains a repetition, such as `(a+)+$`, can match some texts of n characters in 2^n ways. A
response with such a text would use up the verifier's time limit each time it is sampled.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from types import FrameType
from typing import Final

SLOW_REMEDY: Final = "Rewrite it without a repeated group that contains another repetition."
LIMIT_SECONDS: Final = 0.5
"""CPU time for all texts together; harmless patterns need milliseconds."""
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")
_LITERAL_START: Final = re.compile(r"\^?([\w ,:;=-]*)(?![*+?{])")
_NUM_REPEATS: Final = 40
_MOST_CHARACTERS: Final = 8
_ALWAYS: Final = "a0 "
_ENDS: Final = ("\0", "\n\0")
"""Text that a pattern is unlikely to accept next, so that every way to match fails."""


class TooSlowError(Exception):
    """The time limit was reached."""


def explodes(pattern: re.Pattern[str], full: bool) -> bool:
    """Whether `pattern` needs more than `LIMIT_SECONDS` for short texts made from its own characters.

    Call it in the main thread, where a match can be interrupted. In other threads it returns False without trying.
    """
    if not _REPEATED_GROUP.search(pattern.pattern) or threading.current_thread() is not threading.main_thread():
        return False
    matches = pattern.fullmatch if full else pattern.search
    try:
        with limited():
            for text in _attacks(pattern.pattern):
                matches(text)
    except TooSlowError:
        return True
    return False


@contextmanager
def limited() -> Iterator[None]:
    """Raise `TooSlowError` in what takes more than `LIMIT_SECONDS` of CPU time; outside the main thread, never."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooSlowError


def _attacks(pattern: str) -> Iterator[str]:
    """Repetitions of one or two of the pattern's characters, after its literal prefix and before an unlikely ending."""
    written = sorted({sign for sign in pattern if sign.isalnum() or sign in " ,.:;_-"})
    signs = dict.fromkeys([*written[:_MOST_CHARACTERS], *_ALWAYS])
    start = _LITERAL_START.match(pattern)
    starts = dict.fromkeys(["", start[1] if start else ""])
    for before, end in product(starts, _ENDS):
        for first, second in product(signs, signs):
            yield before + (first + second) * _NUM_REPEATS + end
