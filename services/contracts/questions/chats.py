"""Rows with a list of chat messages: the last is the prompt, earlier ones are its history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from services.contracts.errors import ConfigurationError
from services.contracts.messages import MAX_TURNS, Turn
from services.contracts.strict_json import BadJsonError, flaw_of, parse_json

_REMEDY: Final = (
    'Write messages as [{"role": "user", "content": "..."}, ...]: a system message at most at the beginning, then user '
    "and assistant, the user last."
)


def from_messages(place: str, value: Any) -> dict[str, Any]:
    """The fields `prompt` and, if there are such messages, `history` and `system` of a question.

    Args:
        place: file and line, for errors.
        value: the row's field `messages`: a list of `{"role", "content"}`, or its JSON text.

    Raises:
        ConfigurationError: names place, message, value and remedy.
    """
    turns = _list(place, value)
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else ""
    for number, (role, _) in enumerate(turns, start=1 + bool(system)):
        if role == "system":
            raise _fault(f"{place}: messages: message {number} is a system message, which must be the first")
    if not turns or turns[-1][0] != "user":
        found = f"is from {turns[-1][0]!r}, but must be from 'user'" if turns else "is missing"
        raise _fault(f"{place}: messages: the last message {found}")
    if not turns[-1][1].strip():
        raise _fault(f"{place}: messages: the last message is empty")
    fields: dict[str, Any] = {"prompt": turns[-1][1]}
    if system:
        fields["system"] = system
    if len(turns) > 1:
        fields["history"] = tuple(Turn(role=role, content=content) for role, content in turns[:-1])  # type: ignore[arg-type]
    return fields


def _list(place: str, value: Any) -> list[tuple[str, str]]:
    """Role and content of each message."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except BadJsonError as error:
            raise _fault(f"{place}: the field messages is not JSON ({error})") from error
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TURNS:
        found = f"has {len(value)} items" if isinstance(value, list) else f"is {str(value)[:60]!r}"
        raise _fault(f"{place}: the field messages {found}, but must be a list of 1 to {MAX_TURNS:,} messages")
    return [_message(f"{place}: messages: message {number}", item) for number, item in enumerate(value, start=1)]


def _message(place: str, item: Any) -> tuple[str, str]:
    if not isinstance(item, Mapping):
        raise _fault(f"{place} is {str(item)[:60]!r}, not an object")
    role, content = item.get("role"), item.get("content")
    if role not in ("system", "user", "assistant"):
        raise _fault(f"{place}: role is {str(role)[:60]!r}, but must be system, user or assistant")
    if not isinstance(content, str):
        raise _fault(f"{place}: content is {str(content)[:60]!r}, but must be a text")
    if flaw := flaw_of(content):
        raise _fault(f"{place}: content is invalid: {flaw}")
    for name, other in item.items():
        if name not in ("role", "content") and other not in (None, "", [], {}):
            raise _fault(f"{place} has {str(name)[:60]!r}, which no chat template would be given")
    return role, content


def _fault(text: str) -> ConfigurationError:
    return ConfigurationError(f"{text}.", remedy=_REMEDY)
