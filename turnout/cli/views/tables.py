"""Tables of text in a report's two formats."""

from __future__ import annotations

import html
from collections.abc import Sequence

from services.contracts.plain_text import in_line


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its header."""
    lines = ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _markdown_cell(text: str) -> str:
    """A run's text in one line, with HTML escaped, because Markdown viewers would render it."""
    return html.escape(in_line(text), quote=False).replace("|", "\\|")


def html_table(rows: Sequence[Sequence[str]], header: bool = False) -> str:
    """A table; with `header` the first row is one."""
    lines = []
    for index, row in enumerate(rows):
        tag = "th" if header and index == 0 else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>" + "".join(lines) + "</table>"
