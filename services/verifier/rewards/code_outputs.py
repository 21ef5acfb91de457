"""Compares a program's output with what a case expects (see the table in docs/rewards.md)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from services.contracts.strict_json import BadJsonError, read_json

DEFAULT_TOLERANCE: Final = 1e-9
_NEAR_ZERO: Final = 1e-12
"""Default tolerance for an expected 0, since rounding leaves a small rest in sums."""
_MOST_PAIRED: Final = 200
_NUMBER: Final = re.compile(
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf(?:inity)?|nan)", re.ASCII | re.IGNORECASE
)
_INSIDE: Final = re.compile(
    r"(?<![\w.+-])([+-]?[0-9]*\.[0-9]+(?:[eE][+-]?[0-9]+)?|[+-]?[0-9]+[eE][+-]?[0-9]+)(?![\w.])"
)
"""A number with a fraction or an exponent in the middle of text."""
SET: Final = "\0set"
OTHER: Final = "\0other"
"""The driver's keys for a set and for any other value that JSON cannot represent."""


def same_text(given: str, wanted: str, tolerance: float | None = None) -> bool:
    """Whether two texts agree line by line, apart from white space at the ends; numbers are compared by value."""
    left, right = ([line.strip() for line in text.strip().split("\n")] for text in (given, wanted))
    if len(left) != len(right):
        return False
    return all(a == b or _same_line(a, b, tolerance) for a, b in zip(left, right, strict=True))


def same_result(given: str, wanted: str, tolerance: float | None = None) -> bool:
    """Whether the JSON that the driver wrote agrees with the expected JSON."""
    try:
        left, right = (read_json(text, long_numbers=True) for text in (given, wanted))
        return _same_value(left, right, tolerance)
    except (BadJsonError, ArithmeticError):  # ArithmeticError: a whole number too large for a float
        return False


def _same_line(given: str, wanted: str, tolerance: float | None) -> bool:
    left, right = given.split(), wanted.split()
    if len(left) != len(right):
        return False
    if all(map(_NUMBER.fullmatch, left)) and all(map(_NUMBER.fullmatch, right)):
        return all(_same_word(a, b, tolerance) for a, b in zip(left, right, strict=True))
    left, right = _INSIDE.split(given), _INSIDE.split(wanted)  # text and numbers in turn
    return (
        len(left) == len(right)
        and left[::2] == right[::2]
        and all(_same_word(a, b, tolerance) for a, b in zip(left[1::2], right[1::2], strict=True))
    )


def _same_word(given: str, wanted: str, tolerance: float | None) -> bool:
    if given == wanted:
        return True
    left, right = Decimal(given), Decimal(wanted)
    if left.is_nan() or right.is_nan():
        return False
    return left == right or _close(left, right, tolerance)


def _same_value(given: Any, wanted: Any, tolerance: float | None) -> bool:
    if isinstance(given, bool) or isinstance(wanted, bool):
        return given is wanted
    if isinstance(given, float) or isinstance(wanted, float):
        numbers = isinstance(given, int | float | Decimal) and isinstance(wanted, int | float | Decimal)
        return numbers and (given == wanted or _close(given, wanted, tolerance))
    if isinstance(given, list) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(
            _same_value(a, b, tolerance) for a, b in zip(given, wanted, strict=True)
        )
    if isinstance(given, dict) and isinstance(wanted, list):
        members = given.get(SET)
        return given.keys() == {SET} and isinstance(members, list) and _same_members(members, wanted, tolerance)
    if isinstance(given, dict) and isinstance(wanted, dict):
        return given.keys() == wanted.keys() and all(_same_value(given[key], wanted[key], tolerance) for key in wanted)
    return bool(given == wanted)


def _same_members(given: Sequence[Any], wanted: Sequence[Any], tolerance: float | None) -> bool:
    """Whether two sequences agree as sets. Large ones are paired in sorted order, which is cheaper than searching."""
    if len(given) != len(wanted):
        return False
    if len(given) > _MOST_PAIRED:
        left, right = (sorted(members, key=_order) for members in (given, wanted))
        return _same_value(left, right, tolerance)
    left = list(given)
    for member in wanted:
        at = next((i for i, other in enumerate(left) if _same_value(other, member, tolerance)), None)
        if at is None:
            return False
        left.pop(at)
    return True


def _order(value: Any) -> tuple[bool, Any]:
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return False, value
    return True, json.dumps(value, sort_keys=True, default=str)


def _close(given: int | float | Decimal, wanted: int | float | Decimal, tolerance: float | None) -> bool:
    """Whether two numbers differ by at most the question's relative or absolute tolerance, or the default relative one.

    Two whole numbers must be equal. By default a float must round to the whole number that it is compared with, however
    large both are: 1.2345678901234567e+19 is not 12345678901234567890.
    """
    left, right, num_whole = float(given), float(wanted), _whole(given) + _whole(wanted)
    if num_whole == 2 or not (math.isfinite(left) and math.isfinite(right)):
        return False
    if tolerance is None:
        near = math.isclose(left, right, rel_tol=DEFAULT_TOLERANCE, abs_tol=0.0 if right else _NEAR_ZERO)
    else:
        near = abs(left - right) <= tolerance * max(1.0, abs(right))
    if near and num_whole and tolerance is None:
        return abs(Decimal(given) - Decimal(wanted)) < Decimal("0.5")
    return near


def _whole(number: int | float | Decimal) -> bool:
    if isinstance(number, Decimal):
        return number.as_tuple().exponent == 0
    return isinstance(number, int)
