"""Figures that the README repeats are those of the newest benchmarks."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("row", "column", "form"),
    [
        ("| Turnout SRPO |", 3, "{1:.2f}; "),
        ("| Turnout SRPO, only prompts shared |", 3, "{1:.2f} with only prompts shared"),
        ("| Turnout SRPO, nothing shared |", 3, "{1:.2f} with nothing shared"),
        ("| Turnout SDPO |", 3, "like: SDPO {1:.2f}"),
        ("| Turnout GRPO |", 4, "GRPO {1:.2f} |"),
        ("| 32 | 1 |", 5, "{0:.2f} with 32 groups a step"),
        ("| 8 | 1 |", 5, "{0:.2f} with the demo's 8"),
        ("| srpo | 0", 8, "SRPO {0:.1%}"),
        ("| sdpo | 0", 8, "SDPO {0:.1%}"),
        ("| grpo | 0", 8, "GRPO {0:.1%}"),
        ("| advantage-mix | 0", 8, "advantage mix {0:.1%}"),
        ("| speed with load relative to without |", 1, "requests a second | {0:.2f}"),
        ("| **Turnout's sandbox** |", 1, "programs a second | {0:.0f}"),
    ],
)
def test_readme_repeats_the_newest_figures(row: str, column: int, form: str) -> None:
    """`form` gets the figure of docs/performance.md and its inverse."""
    lines = (ROOT / "docs" / "performance.md").read_text().splitlines()
    cells = next(line for line in lines if line.startswith(row)).split("|")[1:]
    value = float(cells[column].split()[0])
    assert form.format(value, 1 / value) in (ROOT / "README.md").read_text()
