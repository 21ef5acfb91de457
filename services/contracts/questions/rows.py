"""Rows of a dataset as questions.

The learner reads a run's data by this. The API and the command check files by it, before anything starts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from services.contracts.errors import ConfigurationError, QuestionError
from services.contracts.messages import Question
from services.contracts.questions.chats import from_messages
from services.contracts.questions.forms import check_question, refuse, regex_pattern
from services.contracts.questions.slow_patterns import SLOW_REMEDY, TooSlowError, explodes, limited
from services.contracts.strict_json import WrittenFloat, flaw_of

FIELDS: Final = ("id", "kind", "system", "prompt", "answer", "tests", "solution")
REQUIRED: Final = ("kind", "prompt")
FORMAT: Final = (
    "Each line must be a JSON object with the fields kind, prompt (or messages) and answer, and optionally id, system, "
    "tests and solution; `columns` of a source takes them from other columns, `kind` and `system` are its defaults."
)
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "id": (str, int),
    "kind": (str,),
    "system": (str,),
    "prompt": (str,),
    "answer": (str, int, float, list, dict),
    "tests": (str, int, float, list, dict),
    "solution": (str, int, float, list, dict),
}


class Rows:
    """Reads the rows of one dataset, one after another, as questions."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}

    def question(self, place: str, row: Any, index: int) -> Question:
        """The question of row `index`, a JSON value. Raises `ConfigurationError` naming its place."""
        question = _question(place, row, index)
        first = self._places.setdefault(question.id, place)
        if first != place:
            raise ConfigurationError(
                f"{place}: the id {question.id[:60]!r} is already used ({first}).",
                remedy="Make the ids unique, or leave the field out.",
            )
        return question


def no_questions(source: str) -> ConfigurationError:
    return ConfigurationError(f"{source} contains no questions.", remedy=FORMAT)


def _question(place: str, row: Any, index: int) -> Question:
    if not isinstance(row, Mapping):
        raise ConfigurationError(f"{place}: not a JSON object.", remedy=FORMAT)
    values: dict[str, Any] = {name: _text(place, name, row[name]) for name in FIELDS if row.get(name) is not None}
    if "prompt" not in values and row.get("messages") is not None:
        values |= from_messages(place, row["messages"])
    for name in (*REQUIRED, *(["id"] if "id" in values else [])):
        if not values.get(name, "").strip():
            raise ConfigurationError(f"{place}: the field {name} is missing or empty.", remedy=FORMAT)
    values.setdefault("id", str(index))
    question = Question(**values)
    try:
        if question.kind == "regex" and _is_slow(question):
            refuse(
                question,
                f"answer is {question.answer[:60]!r}, a pattern that takes exponential time for some responses",
                SLOW_REMEDY,
            )
        check_question(question)
    except QuestionError as error:
        raise ConfigurationError(f"{place}: {error.message}", remedy=error.remedy) from error
    return question


def _is_slow(question: Question) -> bool:
    """Whether the pattern takes exponential time. Raises `QuestionError` for none."""
    try:
        with limited():
            pattern, options = regex_pattern(question)
    except TooSlowError:
        return True
    return explodes(pattern, options.full)


def _json_type(value: Any) -> str:
    """The JSON type of a value, with its article."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "a text",
    }
    return next((name for kind, name in names.items() if isinstance(value, kind)), f"of type {type(value).__name__}")


def _text(place: str, name: str, value: Any) -> str:
    """The value of a field as text for the wire: numbers as written in the file, other values as JSON."""
    if isinstance(value, list) and name in ("prompt", "system"):
        raise ConfigurationError(
            f"{place}: the field {name} is a list, but must be a text.",
            remedy="If it is a list of messages, name the field messages, or set `columns: {messages: prompt}`."
            if name == "prompt"
            else FORMAT,
        )
    if not isinstance(value, _TYPES[name]) or (name == "id" and isinstance(value, bool)):
        raise ConfigurationError(f"{place}: the field {name} is {_json_type(value)}.", remedy=FORMAT)
    if flaw := flaw_of(value):
        raise ConfigurationError(f"{place}: the field {name} is invalid: {flaw}.", remedy="Correct the row.")
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return value.text if isinstance(value, WrittenFloat) else format(Decimal(repr(value)), "f")
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:  # hub datasets can have values that JSON cannot represent
        raise ConfigurationError(f"{place}: the field {name} is not JSON ({error}).", remedy=FORMAT) from error
