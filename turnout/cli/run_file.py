"""Run files: YAML read with line numbers, settings laid over them, checked by the same model as the REST body."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from services.contracts.errors import ConfigurationError
from services.contracts.faults import Conflicts, field_of
from services.contracts.run_config import RunConfig, parse_run_config, sentence
from services.contracts.values import check_yaml

Location = tuple[str | int, ...]
MAX_CHARACTERS = 1_000_000
REMEDY = "See docs/configuration.md for every field."


@dataclass(frozen=True, slots=True)
class RunFile:
    """A run file's values and the line on which each stands."""

    path: Path
    values: dict[str, Any]
    lines: dict[Location, int] = field(default_factory=dict)
    """Line numbers from 1; fields from `--set` have none."""


def load_run(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The checked content of a run file, as the body of `POST /v1/runs`, with `settings` ("a.b=value") laid over.

    Raises:
        ConfigurationError: names file, line and field, the value found and what is asked for.
    """
    file = read_run_file(path)
    for setting in settings:
        apply_setting(file, setting)
    check(file)
    return file.values


def read_run_file(path: Path) -> RunFile:
    """Parse a run file. Raises `ConfigurationError` with file and line where it is not YAML as we need it."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"The run file {path} cannot be read: {reason}.", remedy="Check its path.") from error
    if len(text) > MAX_CHARACTERS:
        raise ConfigurationError(f"{path} has more than {MAX_CHARACTERS} characters; is it a run file?", remedy=REMEDY)
    lines: dict[Location, int] = {}
    try:
        _check_yaml(text, str(path))
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = _build(node, (), lines, path) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise ConfigurationError(f"{path}, line {line}: {error.problem}.", remedy="Correct the YAML.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"{path} is not YAML that we can read: {error}.", remedy="Correct it.") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}, line 1: a run file is a mapping of fields.", remedy=REMEDY)
    return RunFile(path, values, lines)


def _check_yaml(text: str, place: str) -> None:
    try:
        check_yaml(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error.message}", remedy=error.remedy) from error


def _build(node: yaml.Node, location: Location, lines: dict[Location, int], path: Path) -> Any:
    """The node's value; notes the line of every field, and refuses one that is given twice."""
    lines[location] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*location, index), lines, path) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return yaml.SafeLoader("").construct_object(node)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        if key in values:
            line = key_node.start_mark.line + 1
            raise ConfigurationError(f"{path}, line {line}: {key} is given twice.", remedy="Keep one of them.")
        values[key] = _build(value_node, (*location, key), lines, path)
        lines[(*location, key)] = key_node.start_mark.line + 1
    return values


def apply_setting(file: RunFile, setting: str) -> None:
    """Lay one `section.field=value` over the values; the value is read as YAML."""
    name, equals, text = setting.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigurationError(f"--set {setting!r} is not of the form section.field=value.", remedy=REMEDY)
    try:
        _check_yaml(text, f"--set {name}")
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"--set {name}: the value {text!r} is not YAML.", remedy="Quote it.") from error
    target = file.values
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise ConfigurationError(f"--set {name}: {key} is a field, not a section.", remedy=REMEDY)
    target[keys[-1]] = value
    for location in [place for place in file.lines if place[: len(keys)] == tuple(keys)]:
        del file.lines[location]


def changes_of(settings: Sequence[str]) -> dict[str, Any]:
    """Settings of the form "a.b=value" as nested values: `{"a": {"b": value}}`. Raises `ConfigurationError`."""
    file = RunFile(Path(), {})
    for setting in settings:
        apply_setting(file, setting)
    return file.values


def check(file: RunFile) -> RunConfig:
    """The checked configuration. Raises `ConfigurationError` with one line a fault, each with its place in the file."""
    try:
        return parse_run_config(file.values)
    except ConfigurationError as error:
        cause = error.__cause__
        if not isinstance(cause, ValidationError):
            raise
        text = "\n".join(f"{place}: {clause}." for item in cause.errors() for place, clause in _clauses(file, item))
        raise ConfigurationError(text, remedy=REMEDY, field=error.field) from error


def _clauses(file: RunFile, item: Any) -> Iterator[tuple[str, str]]:
    """Place and words of what one of pydantic's errors names."""
    error = item.get("ctx", {}).get("error")
    for clause in error.sentences if isinstance(error, Conflicts) else [sentence(item)]:
        yield _place(file, tuple(item["loc"]) or tuple((field_of((), clause) or "").split("."))), clause


def _place(file: RunFile, location: Location) -> str:
    """File and line of a field, or of the nearest section that the file has."""
    if location and location not in file.lines and _has(file.values, location):
        return f"{file.path} with --set"
    while location and location not in file.lines:
        location = location[:-1]
    return f"{file.path}, line {file.lines[location]}" if location in file.lines else str(file.path)


def _has(values: Any, location: Location) -> bool:
    for key in location:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True
