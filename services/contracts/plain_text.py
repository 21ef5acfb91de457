"""Makes texts of models, files and users safe to print: nothing in them can control a terminal.

Control characters (colours, cursor, title, clipboard), characters that turn the direction of writing, and separators
that some programs take for line breaks are spelled out, as in `\\x1b`.
"""

from __future__ import annotations

import re

_OBEYED = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
OBEYED_IN_LINES = re.compile(f"[{_OBEYED}]")
_OBEYED_IN_LINE = re.compile(f"[\t\n{_OBEYED}]")


def in_line(text: str) -> str:
    """`text` made safe for a single line."""
    return _OBEYED_IN_LINE.sub(_spelled, text)


def in_lines(text: str) -> str:
    """`text` made safe to print, with its line breaks and tabs."""
    return OBEYED_IN_LINES.sub(_spelled, text.replace("\r\n", "\n"))


def _spelled(match: re.Match[str]) -> str:
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    code = ord(match[0])
    return known.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
