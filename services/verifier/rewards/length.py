"""The length of a response as a part of its reward: DAPO's soft overlong punishment (arXiv 2503.14476, section 3.4)."""

from __future__ import annotations

from services.contracts.questions.forms import LengthSettings


def soft_overlong(num_tokens: int, settings: LengthSettings) -> float:
    """Reward of a response of `num_tokens` tokens, reasoning and end of sequence included: 1 up to `max_tokens` -
    `buffer_tokens`, then falling linearly to 0 at `max_tokens`. That is 1 plus the paper's penalty, from 0 to -1."""
    left = settings.max_tokens - num_tokens
    return max(0.0, min(1.0, left / settings.buffer_tokens))
