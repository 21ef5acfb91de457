"""What a part of the GPU proof found, and the report of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

Result = Literal["passed", "FAILED", "not run"]


class Outcome(msgspec.Struct, frozen=True):
    """One row of the report."""

    part: str
    result: Result
    text: str
    seconds: float = 0.0


def report(facts: Iterable[str], outcomes: Sequence[Outcome]) -> str:
    """The report in Markdown, which can be pasted into an issue."""
    lines = ["# GPU proof", "", *(f"- {fact}" for fact in facts), "", "| part | result | seconds | found |"]
    lines.append("|---|---|---:|---|")
    for item in outcomes:
        text = " ".join(item.text.split()).replace("|", "/")
        lines.append(f"| {item.part} | {item.result} | {item.seconds:.0f} | {text} |")
    return "\n".join(lines)
