"""Search of runs by their configuration, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, func

from services.api.storage.runs import Run
from services.contracts.errors import ConfigurationError

FIELD = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
NUMBERS = ("number", "integer", "real")
"""What the two databases call a number."""
_MISSING: Final = object()


def has_value(setting: str, dialect: str) -> ColumnElement[bool]:
    """The condition that a run's configuration has a value: `optimizer.learning_rate=1e-6`.

    The value is JSON; anything else is text, as in `turnout runs start --set`.

    Raises:
        ConfigurationError: the setting has another form, or its value is a list, an object, or text with control
            characters.
    """
    field, equals, text = setting.partition("=")
    value = _value(text)
    unusable = isinstance(value, list | dict) or (isinstance(value, str) and not value.isprintable())
    if not equals or not FIELD.fullmatch(field) or unusable:
        raise ConfigurationError(
            f"config is {setting!r}, but must be FIELD=VALUE with a number, true, false, null or text.",
            remedy="Write it as in optimizer.learning_rate=1e-6.",
            field="config",
        )
    return _equals(tuple(field.split(".")), value, dialect)


def values_of(config: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """The values of fields in dots, of those that the configuration has."""
    found = {}
    for field in fields:
        value: Any = config
        for name in field.split("."):
            value = value.get(name, _MISSING) if isinstance(value, dict) else _MISSING
        if value is not _MISSING:
            found[field] = value
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_int=float, parse_constant=str)  # databases refuse very large integers
    except ValueError:
        return text


def _equals(path: tuple[str, ...], value: float | str | bool | None, dialect: str) -> ColumnElement[bool]:
    found = Run.config[path]
    text: ColumnElement[str] = found.as_string()
    if dialect == "sqlite":
        kind = func.json_type(Run.config, "$." + ".".join(f'"{name}"' for name in path))
    else:
        kind = func.json_typeof(found)
    if value is None:
        return kind == "null"
    if isinstance(value, bool):
        word = "true" if value else "false"
        return kind == word if dialect == "sqlite" else and_(kind == "boolean", text == word)
    if isinstance(value, str):
        return text == value
    # PostgreSQL refuses to read other values as numbers, so their kind comes first.
    return case((kind.in_(NUMBERS), found.as_float()), else_=None) == value
