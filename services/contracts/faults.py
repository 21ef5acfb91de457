"""Turns pydantic's errors into sentences: the field, the value found, and what is required."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from services.contracts.errors import ConfigurationError

MAX_SENTENCES = 10
MAX_PLACE = 120
_NAMED_FIELD = re.compile(r"(preset|run|step|[a-z]+(\.[a-z0-9_]+)+) ")


class Conflicts(ValueError):
    """Invalid combinations of fields, one sentence each, which begins with the field."""

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences


def joined(items: Sequence[Any], sentence: Callable[[Any], str]) -> str:
    """The first of pydantic's errors in one text, and the number of further ones."""
    sentences = [sentence(item) for item in items[:MAX_SENTENCES]]
    more = len(items) - len(sentences)
    return "; ".join(sentences) + (f"; and {more} more" if more else "")


def refused(error: ValidationError, what: str, page: str, sentence: Callable[[Any], str]) -> ConfigurationError:
    """The error for a document, `what`, in which pydantic found faults. docs/`page`.md describes its fields."""
    items = error.errors()
    return ConfigurationError(
        f"The {what} is not valid: {joined(items, sentence)}.",
        remedy=f"See docs/{page}.md for every field.",
        field=field_of(items[0]["loc"], items[0]["msg"]),
    )


def dots(place: Sequence[object]) -> str:
    """A field's path in dots: `training.steps`."""
    text = ".".join(str(part) for part in place)
    return text if len(text) <= MAX_PLACE else text[: MAX_PLACE - 3] + "..."


def field_of(place: Sequence[object], message: str) -> str | None:
    """The field, in dots, that one of pydantic's errors is about. Cross-checks name it first in their sentence."""
    named = _NAMED_FIELD.match(message.removeprefix("Value error, "))
    return dots(place) or (named[1] if named else None)


def sentence_of(item: Any, place: str, fields: Sequence[str]) -> str:
    """One of pydantic's errors as a sentence. `fields` are all known fields, to suggest one for a misspelt name."""
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{place} is not a field{_meant(place, fields)}"
    if item["type"] == "missing":
        return f"{place or 'the body'} is missing"
    if not place:
        return str(message)
    try:
        shown = repr(item.get("input"))
    except (ValueError, RecursionError):  # a number of very many digits, a value of very many levels
        shown = "too long to be shown"
    return f"{place} is {shown if len(shown) <= 80 else shown[:77] + '...'}: {message[:1].lower()}{message[1:]}"


def _meant(place: str, fields: Sequence[str]) -> str:
    """The field with this name in another section, or the one of the same section with nearly this name."""
    section, _, name = re.sub(r"\.\d+\b", "", place).rpartition(".")
    elsewhere = [field for field in fields if field.rpartition(".")[2] == name]
    siblings = [field for field in fields if field.rpartition(".")[0] == section]
    near = get_close_matches(name, [field.rpartition(".")[2] for field in siblings], n=1)
    meant = elsewhere or [f"{section}.{found}".lstrip(".") for found in near]
    return f" (perhaps {meant[0]} is meant)" if meant else ""


def _kinds(annotation: Any) -> Iterator[Any]:
    """A type, and the types in it."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


@cache
def field_names(section: type[BaseModel], head: str = "") -> tuple[str, ...]:
    """Every field and section of a model, in dots."""
    names: list[str] = []
    for name, field in section.model_fields.items():
        names.append(head + name)
        for kind in _kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += field_names(kind, f"{head}{name}.")
    return tuple(names)
