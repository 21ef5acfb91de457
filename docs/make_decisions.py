"""Writes the index of the decisions, docs/decisions/README.md, from their files. `--check` fails if it is stale.

A decision is a file `NNNN-words-of-its-title.md`: a heading `# N. Title`, a line `YYYY-MM-DD · area`, and the reason.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "decisions"
INDEX = FOLDER / "README.md"
AREAS = {
    "project": "Project",
    "general": "All services",
    "learner": "Learner",
    "rollout": "Rollout",
    "verifier": "Verifier",
    "sandbox": "Sandbox",
    "API": "API",
}
HEAD = re.compile(r"# (?P<number>\d+)\. (?P<title>[^\n]+)\n\n(?P<date>\d{4}-\d\d-\d\d) · (?P<area>\S+)\n")
INTRODUCTION = """\
# Decisions

If there were two ways to do something, a file here says which one was taken and why. An outdated decision is not
edited: a new one supersedes it, and the old one gets a line that says so. Figures in a decision are those of its date.

To add one, copy the form of the newest file, with the next number, and run `make docs`, which rewrites this index.
"""


@dataclass(frozen=True, slots=True)
class Decision:
    """The head of one file."""

    number: int
    title: str
    date: str
    area: str
    file: str


def read_decisions() -> list[Decision]:
    """All decisions by number.

    Raises:
        SystemExit: a file is not of the form, its area is unknown, or two have one number.
    """
    found: dict[int, Decision] = {}
    for path in sorted(FOLDER.glob("*.md")):
        if path == INDEX:
            continue
        head = HEAD.match(path.read_text(encoding="utf-8"))
        if head is None or head["area"] not in AREAS or not path.name.startswith(f"{int(head['number']):04d}-"):
            areas = ", ".join(AREAS)
            sys.exit(
                f"{path.name} must be named 0001-title.md and begin with '# 1. Title', a blank line and "
                f"'2026-01-31 · area', where area is one of {areas}."
            )
        number = int(head["number"])
        if number in found:
            sys.exit(f"{path.name} and {found[number].file} have the same number. Renumber the newer one.")
        found[number] = Decision(number, head["title"], head["date"], head["area"], path.name)
    return [found[number] for number in sorted(found)]


def index() -> str:
    """The text of the index."""
    decisions = read_decisions()
    parts = [INTRODUCTION]
    for area, title in AREAS.items():
        rows = [f"| {one.number} | [{one.title}]({one.file}) | {one.date} |\n" for one in decisions if one.area == area]
        if rows:
            parts.append(f"\n## {title}\n\n| | decision | date |\n|---:|---|---|\n{''.join(rows)}")
    return "".join(parts)


if __name__ == "__main__":
    if "--check" not in sys.argv:
        INDEX.write_text(index(), encoding="utf-8")
    elif INDEX.read_text(encoding="utf-8") != index():
        sys.exit("docs/decisions/README.md is stale: run `make docs`.")
