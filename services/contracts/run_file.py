"""Run files: YAML (or JSON, which is YAML too) with the line of every field, so that errors can name it.

This is the only reader of run files; the command and the API share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from services.contracts.errors import ConfigurationError
from services.contracts.faults import MAX_SENTENCES, Conflicts, field_of
from services.contracts.run_config import RunConfig, parse_run_config, sentence
from services.contracts.values import MAX_DEPTH, MAX_VALUES, REMEDY

Location = tuple[str | int, ...]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser if PyYAML was built with it: ten times as fast."""
_FIELD_NAMES = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge", "value")}
_COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass(slots=True)
class ParsedRunFile:
    """A run file's values and the line of each field."""

    source: str
    """How messages name the file; empty for a text without a name."""
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[Location, int] = field(default_factory=dict)
    """Line numbers from 1; fields from `--set` have none."""

    def place(self, location: Location) -> str:
        """Source and line of a field, or of the nearest section that the file has."""
        if location and location not in self.lines and _has(self.values, location):
            return f"{self.source} with --set"
        while location and location not in self.lines:
            location = location[:-1]
        return at_line(self.source, self.lines[location]) if location in self.lines else self.source

    def lay(self, keys: tuple[str, ...], value: Any) -> None:
        """Replace the value of one field. Raises `TypeError` with the name of a field that is not a section."""
        target = self.values
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise TypeError(key)
        target[keys[-1]] = value
        for location in [place for place in self.lines if place[: len(keys)] == keys]:
            del self.lines[location]


def place_in(layers: Sequence[ParsedRunFile], location: Location) -> str:
    """Source and line of a field in files laid over one another, the last on top, or of the nearest section."""
    for end in range(len(location), 0, -1):
        for layer in reversed(layers):
            if location[:end] in layer.lines:
                return at_line(layer.source, layer.lines[location[:end]])
            if not layer.lines and _has(layer.values, location[:end]):
                return layer.source
    return " and ".join(layer.source for layer in layers if layer.values)


def at_line(source: str, line: int) -> str:
    return f"{source}, line {line}" if source else f"Line {line}"


def read_run_text(text: str, source: str = "") -> ParsedRunFile:
    """The values and lines of a run file.

    Raises:
        ConfigurationError: not YAML, not a mapping, a field given twice, aliases, too large; names the line.
    """
    reader = _Reader(source, {})
    values = reader.read(text)
    if not isinstance(values, dict):
        raise reader.refused(1, "a run file is a mapping: lines of `field: value`.", REMEDY)
    return ParsedRunFile(source, values, reader.lines)


def read_value(text: str, source: str) -> Any:
    """The value of a short YAML text. Raises `ConfigurationError`, as `read_run_text` does, but without lines."""
    return _Reader(source, None).read(text)


def check(file: ParsedRunFile) -> RunConfig:
    """The checked configuration. Raises `ConfigurationError` one line per fault, each with its line in the file."""
    try:
        return parse_run_config(file.values)
    except ConfigurationError as error:
        cause = error.__cause__
        if not isinstance(cause, ValidationError):
            raise
        clauses = [pair for item in cause.errors() for pair in _clauses(item)]
        faults = [f"{f'{place}: ' if (place := file.place(at)) else ''}{clause}." for at, clause in clauses]
        more = [f"And {len(faults) - MAX_SENTENCES} more."] if len(faults) > MAX_SENTENCES else []
        raise ConfigurationError(
            "\n".join([*faults[:MAX_SENTENCES], *more]), remedy=error.remedy, field=error.field
        ) from error


class _Reader:
    """Reads one YAML text, and notes the line of each field if `lines` is given."""

    def __init__(self, source: str, lines: dict[Location, int] | None) -> None:
        self.source, self.numbered, self.lines = source, lines is not None, lines or {}

    def read(self, text: str) -> Any:
        try:
            self._check_size(text)
            node = yaml.compose(text, Loader=LOADER)
            return None if node is None else self._value(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = min(mark.line, text.count("\n")) + 1 if mark is not None else 1  # the end may be one line too far
            raise self.refused(line, f"not YAML: {error.problem or error.context}.", "Correct the YAML.") from error
        except (yaml.YAMLError, UnicodeError) as error:
            raise self.refused(1, f"cannot be read as YAML: {error}.", "Correct the YAML.") from error

    def refused(self, place: int | yaml.Node | yaml.Event, text: str, remedy: str) -> ConfigurationError:
        """The error for a line, or for the place of a node."""
        line = place if isinstance(place, int) else _line(place)
        where = at_line(self.source, line) if self.numbered else self.source
        return ConfigurationError(f"{where}: {text}", remedy=remedy)

    def _check_size(self, text: str) -> None:
        """Refuse YAML that expands to more than it looks, before any value is built."""
        depth, num_values = 0, -1  # the document itself does not count
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.AliasEvent):
                name = str(event.anchor)[:50]
                raise self.refused(event, f"*{name} is a YAML alias, which run files do not need.", "Write it out.")
            num_values += isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise self.refused(event, f"values are nested more than {MAX_DEPTH} levels deep.", REMEDY)
            if num_values > 2 * MAX_VALUES:  # a field is two: its name and its value
                raise self.refused(event, f"there are more than {MAX_VALUES} values.", REMEDY)

    def _value(self, node: yaml.Node, location: Location) -> Any:
        self.lines.setdefault(location, _line(node))
        if isinstance(node, yaml.ScalarNode):
            try:
                return yaml.constructor.SafeConstructor().construct_object(node)
            except ValueError as error:  # a date or number that does not exist
                raise self.refused(node, f"{node.value[:80]} cannot be read: {error}.", "Quote it.") from error
        if node.tag not in _COLLECTIONS:
            raise self.refused(node, f"{node.tag[:80]} is a tag that run files do not use.", "Remove the tag.")
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*location, index)) for index, item in enumerate(node.value)]
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._field_name(key_node)
            if key in values:
                raise self.refused(key_node, f"{key} is given twice.", "Keep one of them.")
            self.lines[(*location, key)] = _line(key_node)
            values[key] = self._value(value_node, (*location, key))
        return values

    def _field_name(self, node: yaml.Node) -> str:
        if node.tag in _FIELD_NAMES:
            return str(node.value)
        name = node.value[:80] if isinstance(node, yaml.ScalarNode) else "a list or section"
        raise self.refused(node, f"{name} is not the name of a field; lines are `field: value`.", REMEDY)


def _line(place: yaml.Node | yaml.Event) -> int:
    """Line of a node or event, from 1."""
    return 1 if place.start_mark is None else int(place.start_mark.line) + 1


def _clauses(item: Any) -> Iterator[tuple[Location, str]]:
    """Field and sentence of each fault in one of pydantic's errors."""
    error = item.get("ctx", {}).get("error")
    for clause in error.sentences if isinstance(error, Conflicts) else [sentence(item)]:
        yield tuple(item["loc"]) or _location(field_of((), clause) or ""), clause


def _location(field: str) -> Location:
    """A dotted field as a location; numbers are places in a list."""
    return tuple(int(part) if part.isdecimal() else part for part in field.split("."))


def _has(values: Any, location: Location) -> bool:
    for key in location:
        items = dict(enumerate(values)) if isinstance(values, list) else values
        if not isinstance(items, dict) or key not in items:
            return False
        values = items[key]
    return True
