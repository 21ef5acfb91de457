"""Everything that the command prints. Texts come from models, files and servers; a terminal must not obey them.

Control characters (colours, cursor, title, clipboard), characters that turn the direction of writing, and separators
that some programs take for line breaks are spelled out, as in `\\x1b`. On a terminal that is not UTF-8 the same happens
to what it cannot show, and drawings fall back to ASCII.
"""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

_OBEYED = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_IN_LINES = re.compile(f"[{_OBEYED}]")
_IN_LINE = re.compile(f"[\t\n{_OBEYED}]")
BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-:=+*#"


def in_line(text: str) -> str:
    """`text` as it may stand in one line."""
    return _IN_LINE.sub(_spelled, text)


def in_lines(text: str) -> str:
    """`text` as it may be printed, with its line breaks and tabs."""
    return _IN_LINES.sub(_spelled, text.replace("\r\n", "\n"))


def _spelled(match: re.Match[str]) -> str:
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    code = ord(match[0])
    return known.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def json_text(value: Any, *, indented: bool = False) -> str:
    """JSON in which every character that a terminal would obey is escaped, so that it means the same."""
    encoded = msgspec.json.encode(value)
    text = (msgspec.json.format(encoded) if indented else encoded).decode()
    return _IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: str = "") -> None:
    """Print one line."""
    print(in_line(text), flush=True)


def say_lines(text: str) -> None:
    """Print a text of several lines."""
    print(in_lines(text), flush=True)


def say_json(value: Any, *, indented: bool = False) -> None:
    """Print a value as JSON, in one line unless `indented`."""
    text = json_text(value, indented=indented)
    print(text if _is_utf8() else _ascii_json(text), flush=True)


def say_error(text: str) -> None:
    """Print to standard error."""
    print(in_lines(text), file=sys.stderr, flush=True)


def console() -> Console:
    """A console of rich that takes brackets and colons in texts for what they are."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)


def bars() -> str:
    """Eight characters of growing height."""
    try:
        BARS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_BARS
    return BARS


def spell_out_what_cannot_be_shown() -> None:
    """Let nothing that is printed end the command, whatever the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _ascii_json(text: str) -> str:
    """The same JSON in ASCII: `\\U0001f680` of Python is not JSON, a pair of halves is."""
    return re.sub("[^\x00-\x7f]", lambda match: "".join(f"\\u{half:04x}" for half in _halves(match[0])), text)


def _halves(character: str) -> list[int]:
    encoded = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(encoded[index : index + 2], "big") for index in range(0, len(encoded), 2)]
