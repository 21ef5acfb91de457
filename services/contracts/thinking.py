"""The reasoning that a response may begin with, between the model's own markers."""

from __future__ import annotations

from typing import Final

OPEN: Final = "<think>"
CLOSE: Final = "</think>"
"""What most models write. Cohere, Mistral and others have their own."""


def without_thinking(text: str, opening: str = OPEN, closing: str = CLOSE) -> str:
    """`text` less its thinking; also less an opened part that never closes, or a closed one that never opened."""
    kept: list[str] = []
    position = 0
    while (opened := text.find(opening, position)) >= 0:
        kept.append(text[position:opened])
        closed = text.find(closing, opened)
        if closed < 0:
            position = len(text)
            break
        position = closed + len(closing)
        while text[position : position + 1].isspace():
            position += 1
    return "".join([*kept, text[position:]]).rpartition(closing)[2].strip()


def thinking_end(text: str, opening: str, closing: str, *, opened: bool) -> int | None:
    """Index in a response's `text` at which its thinking ends and its answer begins; 0 without thinking, None if the
    thinking never ends.

    Args:
        opened: the prompt ends with `opening`, so the response begins with thinking.
    """
    last = text.rfind(closing)
    end = 0 if last < 0 else last + len(closing)
    if opening in text[end:] or (opened and last < 0):
        return None
    return end
