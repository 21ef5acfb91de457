"""Columns of a published dataset as the fields of a question.

An expression is `column|transform|transform:argument`. A dotted name goes into objects, lists (`choices.0`) and JSON
texts (`metadata.func_name`). `=text` is that text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from services.contracts.questions.transforms import TRANSFORMS, ColumnError
from services.contracts.strict_json import BadJsonError, parse_json


@dataclass(frozen=True, slots=True)
class Parsed:
    """An expression: a constant, or a column with its transforms and their arguments."""

    constant: str | None
    column: str = ""
    steps: tuple[tuple[str, str], ...] = ()


@lru_cache(maxsize=512)
def parse_expression(text: str) -> Parsed:
    """The parts of an expression. Raises `ColumnError`."""
    if text.startswith("="):
        return Parsed(text[1:])
    column, *parts = text.split("|")
    if not column.strip():
        raise ColumnError("it names no column; write column|transform, or =text for a constant")
    steps = []
    for part in parts:
        name, colon, argument = part.partition(":")
        name = name.strip()
        transform = TRANSFORMS.get(name)
        if transform is None:
            near = get_close_matches(name, TRANSFORMS, n=1)
            meant = f" (perhaps {near[0]} is meant)" if near else ""
            raise ColumnError(f"there is no transform {name!r}{meant}; use one of {', '.join(TRANSFORMS)}")
        if transform.argument == "required" and not argument:
            raise ColumnError(f"{name} needs an argument; write {name}:TEXT")
        if transform.argument == "none" and colon:
            raise ColumnError(f"{name} takes no argument; write {name}")
        steps.append((name, argument))
    return Parsed(None, column.strip(), tuple(steps))


def evaluate(expression: str | Sequence[str], row: Mapping[str, Any]) -> Any:
    """The value of an expression for a row; of several, their texts joined, or their lists. Raises `ColumnError`."""
    if isinstance(expression, str):
        return _one(expression, row)
    found = {part: _one(part, row) for part in expression}
    values = [found[part] for part in expression if found[part] is not None]
    if values and all(isinstance(value, list) for value in values):
        return [item for value in values for item in value]
    for part, value in found.items():
        if isinstance(value, (bool, list, Mapping)):
            raise ColumnError(f"{part!r} is not a text that can be joined with others; add |join, |options or |json")
    return "".join(text_of(value) for value in values)


def text_of(value: Any) -> str:
    """A number or text as text, numbers as they were written."""
    return str(getattr(value, "text", value))


def _one(expression: str, row: Mapping[str, Any]) -> Any:
    parsed = parse_expression(expression)
    if parsed.constant is not None:
        return parsed.constant
    value = column(row, parsed.column)
    for name, argument in parsed.steps:
        if value is None:
            return None
        transform = TRANSFORMS[name]
        given = column(row, argument) if transform.names_column and argument else argument
        try:
            value = transform.apply(value, given)
        except ColumnError as error:
            raise ColumnError(f"{name}: {error}") from error
    return value


def column(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of what a dotted name finds in it. Raises `ColumnError`."""
    if name in row:
        return row[name]
    head, *parts = name.split(".")
    if head not in row:
        near = get_close_matches(name, [str(key) for key in row], n=1)
        meant = f"; perhaps {near[0]} is meant" if near else ""
        shown = ", ".join(map(str, list(row)[:20])) or "none"
        raise ColumnError(f"there is no column {name!r} (the row has {shown}{meant})")
    value: Any = row[head]
    for part in parts:
        value = _inside(value, part, name)
    return value


def _inside(value: Any, part: str, name: str) -> Any:
    if isinstance(value, str):
        try:
            value = parse_json(value, as_written=True)
        except BadJsonError as error:
            raise ColumnError(f"{name}: a text before {part!r} is not JSON ({error})") from error
    if isinstance(value, Mapping) and part in value:
        return value[part]
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    if value is None or (isinstance(value, Mapping) and not value):
        return None
    raise ColumnError(f"{name}: there is no {part!r} in {str(value)[:60]!r}")
