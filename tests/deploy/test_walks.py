"""The walks of docs/architecture.md lead through functions that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import ROOT

STATION = re.compile(r"^\| (?P<number>\d+) \| .* \| `(?P<file>[\w/]+\.py)`, `(?P<function>[\w.]+)` \|$", re.MULTILINE)
STATIONS = [match.groups() for match in STATION.finditer((ROOT / "docs" / "architecture.md").read_text())]


def functions(file: str) -> set[str]:
    """Functions of a module and methods of its classes, as `function` and `Class.method`."""
    found = set()
    for item in ast.parse((ROOT / file).read_text()).body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(item.name)
        if isinstance(item, ast.ClassDef):
            methods = [part for part in item.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{item.name}.{method.name}" for method in methods}
    return found


def test_there_are_four_walks_of_at_most_twelve_stations() -> None:
    numbers = [int(number) for number, _, _ in STATIONS]
    starts = [index for index, number in enumerate(numbers) if number == 1]
    walks = [numbers[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    assert len(walks) == 4
    assert all(walk == list(range(1, len(walk) + 1)) and 5 <= len(walk) <= 12 for walk in walks)


@pytest.mark.parametrize(("number", "file", "function"), STATIONS, ids=[" ".join(station) for station in STATIONS])
def test_every_station_exists(number: str, file: str, function: str) -> None:
    assert function in functions(file), f"station {number}: {file} has no {function}"
