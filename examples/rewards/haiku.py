"""A custom reward: a haiku has three lines, separated by line breaks. docs/rewards.md shows how to install it."""

from __future__ import annotations

from turnout import Judgement, Question


def judge_haiku(question: Question, response_text: str, truncated: bool) -> Judgement:
    """Reward 1 for three lines, and a third less for each line too many or too few."""
    num_lines = len(response_text.strip().splitlines())
    correct = num_lines == 3 and not truncated
    return Judgement(
        reward=max(0.0, 1 - abs(num_lines - 3) / 3) if not truncated else 0.0,
        correct=correct,
        format_ok=not truncated,
        feedback="" if correct else f"A haiku has 3 lines; this response has {num_lines}.",
    )
