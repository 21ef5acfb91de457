"""Writes docs/configuration.md from the run configuration model and the settings class.

python docs/make_configuration.py          # write
python docs/make_configuration.py --check  # exit 1 if the page is stale
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services.contracts.model import MAX_INTEGER
from services.contracts.objectives.registry import OBJECTIVES, PRESETS
from services.contracts.run_config import ObjectiveSection, RunConfig
from services.runtime.settings import Settings

PAGE = Path(__file__).with_name("configuration.md")

NAMES = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}

HEAD = """# Configuration

Generated from the code by `make docs`; do not edit.

## Run files

A run file is YAML with the sections below; a REST body is the same in JSON. Unknown fields, values out of range and
combinations that cannot work are refused by name. Defaults are the paper's SRPO settings (arXiv 2604.02288) unless a
field says otherwise. `preset:` starts from one of the paper's settings; fields that you set take precedence. Integers
may be up to 2^53 - 1.
"""


def type_text(schema: dict[str, Any]) -> str:
    """A field's type, from its JSON schema, in words that YAML users know."""
    if "$ref" in schema:
        return "section"
    if "anyOf" in schema and "type" not in schema:
        return " or ".join(type_text(part) for part in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array" and "$ref" in schema.get("items", {}):
        return "list of sections"
    if schema.get("type") == "array":
        return "list of names" if schema.get("items", {}).get("type") == "string" else "list of numbers"
    return NAMES.get(schema.get("type", ""), schema.get("type", "text"))


def bounds(field: FieldInfo) -> str:
    """The limits of a number, in words."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = []
    for item in field.metadata:
        for name, sign in signs.items():
            value = getattr(item, name, None)
            if value is not None and abs(value) != MAX_INTEGER:
                found.append(f"{sign} {value:g}")
    return f" ({', '.join(found)})" if found else ""


def default_text(field: FieldInfo) -> str:
    """The default as YAML would show it; "required" if there is none."""
    if field.default is PydanticUndefined:
        return "required"
    value: Any = field.default
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f"`{value}`" if value != "" else "empty"


def nested(field: FieldInfo, *, optional: bool) -> type[BaseModel] | None:
    """The section that a field holds, or with `optional` may hold; None for plain values."""
    parts = types_in(field.annotation) if optional else (field.annotation,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def types_in(annotation: Any) -> Iterator[Any]:
    """A type, and the types in it."""
    yield annotation
    for part in get_args(annotation):
        yield from types_in(part)


def section_lines(name: str, field: FieldInfo) -> list[str]:
    """A section's heading and table, and those of the sections inside."""
    model = nested(field, optional=True)
    if model is None:
        return []
    lines = [f"### `{name}`", "", *table(model), ""]
    for inner, inner_field in model.model_fields.items():
        lines += section_lines(f"{name}.{inner}", inner_field)
    return lines


def table(model: type[BaseModel]) -> list[str]:
    """One row per field."""
    properties = model.model_json_schema()["properties"]
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if nested(field, optional=False) is not None:
            continue
        meaning = " ".join((field.description or "").split()).replace("|", "\\|") + takers(model, name)
        rows.append(f"| `{name}` | {type_text(properties[name])}{bounds(field)} | {default_text(field)} | {meaning} |")
    return rows


def takers(model: type[BaseModel], name: str) -> str:
    """Which objectives take a field, unless all of them do."""
    names = [f"`{objective.name}`" for objective in OBJECTIVES.values() if name in objective.takes]
    if model is not ObjectiveSection or len(names) == len(OBJECTIVES):
        return ""
    return f" Taken by {', '.join(names)}."


def page() -> str:
    """The whole page."""
    lines = [HEAD, *table(RunConfig), ""]
    for name, field in RunConfig.model_fields.items():
        lines += section_lines(name, field)
    lines += ["## Presets", "", "| field | " + " | ".join(f"`{name}`" for name in PRESETS) + " |"]
    lines.append("|---|" + "---|" * len(PRESETS))
    paths = sorted({(section, key) for preset in PRESETS.values() for section in preset for key in preset[section]})
    for section, key in paths:
        values = [str(preset.get(section, {}).get(key, "")) for preset in PRESETS.values()]
        lines.append(f"| `{section}.{key}` | " + " | ".join(values) + " |")
    lines += ["", "## Environment of the services", "", "Every variable starts with `TURNOUT_`.", ""]
    lines += ["| variable | type | default | meaning |", "|---|---|---|---|"]
    properties = Settings.model_json_schema()["properties"]
    for name, field in Settings.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(
            f"| `TURNOUT_{name.upper()}` | {type_text(properties[name])}{bounds(field)} "
            f"| {default_text(field)} | {meaning} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check the page; the exit code says whether it was up to date."""
    text = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != text:
            print("docs/configuration.md is stale. Run `make docs` and commit it.")
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
