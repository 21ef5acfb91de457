"""What a reward says of one reply."""

from __future__ import annotations

import msgspec


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What a reward says of one reply."""

    reward: float
    """In [0, 1]."""
    correct: bool
    """All-or-nothing, even if the question gives partial credit."""
    parsed_answer: str = ""
    format_ok: bool = False
    feedback: str = ""
    """Short and true text for the model to learn from; empty for none. Must not reveal hidden tests."""
