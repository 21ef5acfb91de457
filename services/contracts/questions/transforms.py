"""The transforms of column expressions (docs/data.md has the table)."""

from __future__ import annotations

import ast
import base64
import binascii
import io
import json
import pickle
import string
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from services.contracts.strict_json import BadJsonError, WrittenFloat, parse_json

LARGEST_UNPACKED: Final = 256 << 20
"""Bytes."""


class ColumnError(ValueError):
    """A column expression that is invalid, or that a row has no value for; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Transform:
    """One transform: from a value and the argument to a value."""

    apply: Callable[[Any, Any], Any]
    argument: Literal["none", "required", "optional"] = "none"
    names_column: bool = False
    """Whether the argument names a column, whose value is given instead."""


def _text(value: Any) -> str:
    if isinstance(value, WrittenFloat):
        return value.text
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ColumnError(f"the value is {_shown(value)}, not a text")
    return str(value)


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."


def _after(value: Any, argument: str) -> str:
    _, found, rest = _text(value).rpartition(argument)
    if not found:
        raise ColumnError(f"{argument!r} does not occur in {_shown(value)}")
    return rest.strip()


def _before(value: Any, argument: str) -> str:
    start, found, _ = _text(value).partition(argument)
    if not found:
        raise ColumnError(f"{argument!r} does not occur in {_shown(value)}")
    return start.strip()


def _json(value: Any, _: str) -> Any:
    if isinstance(value, str):
        return _parsed(value)
    return json.dumps(value, ensure_ascii=False)


def _parsed(text: str) -> Any:
    try:
        return parse_json(text, as_written=True)
    except BadJsonError as error:
        raise ColumnError(f"{_shown(text)} is not JSON ({error})") from error


def _list(value: Any) -> list[Any]:
    value = _parsed(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise ColumnError(f"the value is {_shown(value)}, not a list")
    return value


def _join(value: Any, argument: str) -> str:
    return (argument or "\n").join(_text(item) for item in _list(value))


def _letter(value: Any, _: str) -> str:
    text = _text(value).strip()
    if not text.isdecimal() or int(text) >= len(string.ascii_uppercase):
        raise ColumnError(f"the value is {_shown(value)}, not the index of an option, from 0")
    return string.ascii_uppercase[int(text)]


def _options(value: Any, _: str) -> str:
    """Lines `A) text` from a list of texts, or from {"text": [...], "label": [...]}."""
    labels: Any = string.ascii_uppercase
    if isinstance(value, Mapping):
        labels, value = value.get("label") or labels, value.get("text")
    texts = _list(value)
    if len(texts) > len(labels):
        raise ColumnError(f"there are {len(texts)} options and {len(labels)} labels")
    return "\n".join(f"{label}) {_text(text)}" for label, text in zip(labels, texts, strict=False))


def _boxed(value: Any, _: str) -> str:
    r"""The content of the last `\boxed{...}`."""
    text = _text(value)
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0:
        raise ColumnError(r"there is no \boxed{...}")
    start = text.index("{", start) + 1
    depth = 1
    for end in range(start, len(text)):
        depth += (text[end] == "{") - (text[end] == "}")
        if not depth:
            return text[start:end].strip()
    raise ColumnError(r"the last \boxed{ is not closed")


def _asserts(value: Any, _: str) -> list[dict[str, Any]]:
    """Cases of kind `code` from Python lines `assert name(values) == value`."""
    return [_assertion(_text(item)) for item in _list(value)]


def _assertion(line: str) -> dict[str, Any]:
    try:
        match ast.parse(line.strip()).body:
            case [
                ast.Assert(
                    test=ast.Compare(
                        left=ast.Call(func=ast.Name(id=name), args=args, keywords=[]),
                        ops=[ast.Eq()],
                        comparators=[expected],
                    )
                )
            ]:
                values = [_plain(ast.literal_eval(item)) for item in (*args, expected)]
                return {"call": name, "args": values[:-1], "expected": values[-1]}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ColumnError(f"{_shown(line)} cannot be read ({error})") from error
    raise ColumnError(f"{_shown(line)} is not of the form `assert name(values) == value`")


def _plain(value: Any) -> Any:
    """A Python literal as JSON: tuples are lists. Raises `ValueError` for what JSON does not have."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError("not JSON")


def _cases(value: Any, function: Any) -> list[dict[str, Any]]:
    """Cases of kind `code` from LiveCodeBench's list of {"input", "output", "testtype"}."""
    return [_case(item, function) for item in _list(value)]


def _case(item: Any, function: Any) -> dict[str, Any]:
    if (
        not isinstance(item, Mapping)
        or not isinstance(item.get("input"), str)
        or not isinstance(item.get("output"), str)
    ):
        raise ColumnError(f"{_shown(item)} has no texts input and output")
    if item.get("testtype", "stdin") == "stdin":
        return {"stdin": item["input"], "stdout": item["output"]}
    if not isinstance(function, str) or not function:
        raise ColumnError("a case calls a function, but its name is missing; write cases:COLUMN")
    lines = [line for line in item["input"].split("\n") if line.strip()]
    return {"call": function, "args": [_parsed(line) for line in lines], "expected": _parsed(item["output"])}


def _calls(value: Any, _: str) -> list[dict[str, Any]]:
    """Calls of kind `tooluse` from ToolAlpaca's steps [[name, input, ...], observation]."""
    calls = []
    for step in _list(value):
        head = step[0] if isinstance(step, list) and step else None
        if not isinstance(head, list) or len(head) < 2 or not isinstance(head[0], str):
            raise ColumnError(f"{_shown(step)} is not [[name, input, ...], observation]")
        calls.append({"Action": head[0], "Action_Input": head[1]})
    return calls


class _TextsOnly(pickle.Unpickler):
    """Unpickles texts, numbers, lists and dictionaries. Nothing in the data can be called."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it contains {module}.{name}")


def _unpack(value: Any, _: str) -> Any:
    """LiveCodeBench's private cases: JSON, or JSON pickled, compressed by zlib and in base64."""
    text = _text(value)
    if text.lstrip().startswith("["):
        return _parsed(text)
    try:
        unpacked = zlib.decompressobj()
        data = unpacked.decompress(base64.b64decode(text, validate=True), LARGEST_UNPACKED)
        if unpacked.unconsumed_tail:
            raise ColumnError(f"it unpacks to more than {LARGEST_UNPACKED >> 20} MiB")
        found = _TextsOnly(io.BytesIO(data)).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError) as error:
        if isinstance(error, ColumnError):
            raise
        raise ColumnError(f"it is not packed cases ({error})") from error
    return _parsed(found) if isinstance(found, str) else found


TRANSFORMS: Final[dict[str, Transform]] = {
    "after": Transform(_after, "required"),
    "before": Transform(_before, "required"),
    "strip": Transform(lambda value, _: _text(value).strip()),
    "lower": Transform(lambda value, _: _text(value).lower()),
    "join": Transform(_join, "optional"),
    "json": Transform(_json),
    "letter": Transform(_letter),
    "options": Transform(_options),
    "boxed": Transform(_boxed),
    "asserts": Transform(_asserts),
    "cases": Transform(_cases, "optional", names_column=True),
    "unpack": Transform(_unpack),
    "calls": Transform(_calls),
}
