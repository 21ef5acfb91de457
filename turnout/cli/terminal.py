"""Prints everything that the command prints. Texts come from models, files and servers; a terminal must not obey them.

Characters that it would obey are spelled out (`plain_text`). If the terminal is not UTF-8, so are those that it cannot
show, and drawings fall back to ASCII.
"""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import msgspec

from services.contracts.plain_text import OBEYED_IN_LINES, in_line, in_lines

if TYPE_CHECKING:
    from rich.console import Console

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-:=+*#"


def json_text(value: Any, *, indented: bool = False) -> str:
    """JSON in which every character that a terminal would obey is escaped; its meaning is unchanged."""
    encoded = msgspec.json.encode(value)
    text = (msgspec.json.format(encoded) if indented else encoded).decode()
    return OBEYED_IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: str = "") -> None:
    """Print one line."""
    print(in_line(text), flush=True)


def say_part(text: str) -> None:
    """Print a part of a text that continues."""
    print(in_lines(text), end="", flush=True)


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
    """A rich console that prints brackets and colons literally."""
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
    """Keep printing from raising, whatever the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _ascii_json(text: str) -> str:
    """The same JSON in ASCII. Python's `\\U0001f680` is not JSON; a surrogate pair is."""
    return re.sub("[^\x00-\x7f]", lambda match: "".join(f"\\u{half:04x}" for half in _halves(match[0])), text)


def _halves(character: str) -> list[int]:
    encoded = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(encoded[index : index + 2], "big") for index in range(0, len(encoded), 2)]
