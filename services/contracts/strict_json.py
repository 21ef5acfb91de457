"""Strict JSON within bounds, so that every value read can be sent on, stored and compared.

`json.loads` accepts NaN, keeps the last of two fields with the same name, and raises four kinds of errors. The
functions here raise one error, whose text says what is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

DEEPEST: Final = 200
"""Deepest permitted nesting."""
MOST_DIGITS: Final = 4300
"""Most digits in a whole number; Python converts no more (`sys.int_info.default_max_str_digits`)."""
_LONGEST_NAME: Final = 60


class BadJsonError(ValueError):
    """A text is not JSON, or contains values that some services cannot handle; `str()` says which."""


class WrittenFloat(float):
    """A number that remembers how it was written: `1.50` does not become `1.5`, nor `0.00005` `5e-05`."""

    def __init__(self, text: str) -> None:
        self.text = text


def read_json(text: str, *, long_numbers: bool = False) -> Any:
    """Parse `text`. With `long_numbers`, whole numbers of more than `MOST_DIGITS` digits become `Decimal`; otherwise
    they are errors. Raises `BadJsonError`."""
    value = _parsed(lambda: (_LONG if long_numbers else _PLAIN).decode(text))
    if flaw := flaw_of(value):
        raise BadJsonError(flaw)
    return value


def read_json_at(text: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and the index where it ends. Raises `BadJsonError`."""
    value, end = _parsed(lambda: _PLAIN.raw_decode(text, start))
    if flaw := flaw_of(value):
        raise BadJsonError(flaw)
    return value, end


def parse_json(text: str, *, as_written: bool = False) -> Any:
    """Parse `text` without checking `flaw_of`. With `as_written`, floats are `WrittenFloat`."""
    return _parsed(lambda: (_WRITTEN if as_written else _PLAIN).decode(text))


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
    """As `read_json_at`, with `WrittenFloat` and without checking `flaw_of`."""
    value, end = _parsed(lambda: _WRITTEN.raw_decode(text, start))
    return value, end


def flaw_of(value: Any) -> str:
    """Why a value is unusable: too deeply nested, a non-finite number, an unpaired surrogate. Empty if it is fine."""
    level = [value]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float) and not math.isfinite(item):
                return "it contains NaN, Infinity or a number that is too large"
            elif isinstance(item, str) and (flaw := flaw_of_text(item)):
                return flaw
        if not below:
            return ""
        level = below
    return _TOO_DEEP


def flaw_of_text(text: str) -> str:
    """Why `text` cannot be encoded in UTF-8; empty if it can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"it contains {text[error.start]!a}, an unpaired surrogate"
    return ""


def same_json(left: Any, right: Any) -> bool:
    """Whether two values are equal in JSON: types count (true is not 1), but numbers have one type (1 is 1.0)."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_json(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return bool(left == right)


_TOO_DEEP: Final = f"it is nested more than {DEEPEST} levels deep"


def _parsed(parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except json.JSONDecodeError as error:
        raise BadJsonError(f"{error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise BadJsonError(_TOO_DEEP) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise BadJsonError(f"it has the field {twice[:_LONGEST_NAME]!a} twice")
    return found


def _whole(text: str) -> int | float:
    return int(text) if len(text) <= MOST_DIGITS else math.inf  # which `flaw_of` rejects


def _whole_or_long(text: str) -> int | Decimal:
    return int(text) if len(text) <= MOST_DIGITS else Decimal(text)


_LONG: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole_or_long)
_PLAIN: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole)
_WRITTEN: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=WrittenFloat)
