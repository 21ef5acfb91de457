"""Finds the program in a reply: the last complete code block that may be Python, otherwise the tagged answer.

Blocks follow Markdown, including indented ones and those in lists and quotations. Common deviations are accepted: text
before an opening fence that names Python or after a closing fence, and an earlier block that was never closed.
"""

from __future__ import annotations

import re
from typing import Final

from markdown_it import MarkdownIt

from services.verifier.rewards.replies import tagged_answer

# Only constructs that can contain a fence: models indent fences arbitrarily, and their tags are not HTML.
_MARKDOWN: Final = MarkdownIt("zero").enable(["fence", "list", "blockquote"]).disable("inline")
_PYTHON: Final = re.compile(r"\W*(?:i?py|python)[0-9.]*(?![a-z])", re.IGNORECASE)
_LATE: Final = re.compile(r"```(?:py|python)3?[ \t]*$", re.IGNORECASE | re.MULTILINE)
_FOLLOWED: Final = re.compile(r"^([ \t>]*```)[ \t]+(?!py)(?=\S+[ \t]|\S*[.:!]$)", re.IGNORECASE | re.MULTILINE)
_AGAIN: Final = re.compile(r"^[ \t]*(?:```+|~~~+)[ \t]*(?:py|python)3?[ \t]*\n", re.IGNORECASE | re.MULTILINE)
_INLINE: Final = re.compile(r"(`{1,3})([^`]+)\1")


def extract_program(text: str) -> str | None:
    """The last complete block that names Python or no language, in the tagged answer, otherwise in the reply.

    Without such a block, the last block of another language, otherwise the tagged answer. None if there is neither.
    """
    answer = tagged_answer(text)
    for part in filter(None, (answer, text)):
        if blocks := _fenced_blocks(_with_fences_on_their_own(part)):
            named = [content for info, content in blocks if not info or _PYTHON.match(info)]
            return (named or [content for _, content in blocks])[-1]
    inline = _INLINE.fullmatch(answer) if answer else None
    return inline[2] if inline else answer or None


def _with_fences_on_their_own(text: str) -> str:
    """`text` with fences that share a line with a sentence moved to separate lines."""
    parts, end = [], 0
    for match in _LATE.finditer(text):
        before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if "`" not in before and before.strip(" \t>*+.)-0123456789"):
            parts.append(text[end : match.start()])
            end = match.start()
    return _FOLLOWED.sub(r"\1\n", "\n".join([*parts, text[end:]]))


def _fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of the closed fenced blocks, without the indentation of their fences."""
    lines, blocks = re.split(r"\r\n?|\n", text), []
    for token in _MARKDOWN.parse(text):
        if token.type == "fence" and token.map is not None:
            last = lines[min(token.map[1], len(lines)) - 1].strip(" \t>")
            if token.map[1] - token.map[0] > 1 and last.startswith(token.markup) and not last.strip(token.markup[0]):
                opened = _AGAIN.split(token.content) if len(token.markup) == 3 else [token.content]
                info = token.info.strip() if len(opened) == 1 else "python"
                blocks.append((info, opened[-1]))
    return blocks
