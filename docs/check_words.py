"""Rejects phrases of docs/style_words.yaml, and messages that the runbook quotes and the code does not have.

Code in Markdown is not prose and is not checked.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "docs" / "style_words.yaml"
PROSE = {".md", ".py", ".js", ".html", ".yaml", ".yml", ".sh", ".toml"}
LEFT_OUT = {"style.md", "test_words.py", WORDS.name}
"""They quote the phrases."""
MARKDOWN_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
GAP = r"[\s#*/>]+"
"""What separates two words: spaces, or the end of a line and the comment sign of the next."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One phrase that was found."""

    line: int
    phrase: str
    write: str


def load_words(path: Path = WORDS) -> list[tuple[re.Pattern[str], str]]:
    """Patterns, with what to write instead."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        (re.compile(rf"\b(?:{entry['find'].replace(' ', GAP)})\b", re.IGNORECASE), entry["write"]) for entry in entries
    ]


def findings(text: str, words: list[tuple[re.Pattern[str], str]], *, markdown: bool) -> Iterator[Finding]:
    """The phrases found in a text."""
    if markdown:
        text = MARKDOWN_CODE.sub(lambda match: re.sub(r"[^\n]", "_", match[0]), text)
    for pattern, write in words:
        for match in pattern.finditer(text):
            phrase = re.sub(GAP, " ", match[0])
            yield Finding(text.count("\n", 0, match.start()) + 1, phrase, write)


def prose_files() -> list[Path]:
    """Text files that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    paths = [ROOT / name for name in names]
    return [path for path in paths if path.suffix in PROSE and path.name not in LEFT_OUT and path.is_file()]


def stale_quotes(runbook: str, said: str) -> list[str]:
    """Parts of messages quoted in a runbook's symptoms that do not occur in what the code says. Ellipses stand for
    values. Docker's own messages are left out."""
    symptoms = re.sub(r"\n### Docker\n.*?(?=\n### )", "", runbook.partition("\n## Symptoms\n")[2], flags=re.DOTALL)
    parts = [part.strip() for text in re.findall(r'"([^"]+)"', symptoms) for part in text.split("...")]
    return [part for part in parts if len(part) > 4 and part not in said]


def messages() -> str:
    """All literal text in the services' and the command's code."""
    paths = [path for folder in ("services", "turnout") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return "\0".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def main() -> int:
    """Print the findings. Returns 1 if there are any."""
    words = load_words()
    count = 0
    for path in prose_files():
        for finding in findings(path.read_text(encoding="utf-8"), words, markdown=path.suffix == ".md"):
            print(f'{path.relative_to(ROOT)}:{finding.line}: "{finding.phrase}": write {finding.write}')
            count += 1
    if count:
        print(f"{count} phrases to rewrite; docs/style.md says why.")
    stale = stale_quotes((ROOT / "docs" / "runbook.md").read_text(encoding="utf-8"), messages())
    for quote in stale:
        print(f'docs/runbook.md quotes "{quote}", but no message says so. Quote the message as it is.')
    return bool(count or stale)


if __name__ == "__main__":
    sys.exit(main())
