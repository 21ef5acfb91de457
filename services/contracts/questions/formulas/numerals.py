"""Numbers as written, exactly."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from services.contracts.questions.formulas.tree import Node, Unreadable

LONGEST_NUMBER: Final = 1000
"""Digits of a number as written."""
LARGEST_POWER_OF_TEN: Final = 4000
"""Of scientific notation, which is computed as it is read."""


def number(text: str) -> Node:
    """A number as written, exactly. Raises `Unreadable` for one that is too long."""
    plain, _, exponent = text.lower().partition("e")
    if len(plain) > LONGEST_NUMBER or (exponent and (len(exponent) > 6 or abs(int(exponent)) > LARGEST_POWER_OF_TEN)):
        raise Unreadable("it has a number that is too long")
    value, power = Fraction(plain), int(exponent or 0)
    if "." not in plain:
        return Node("number", value=value * Fraction(10) ** power)
    places = len(plain.partition(".")[2])
    return Node(
        "number",
        value=value * Fraction(10) ** power,
        unit_in_last_place=Fraction(10) ** (power - places),
        digits=len(plain.replace(".", "").strip("0")),
    )


def repeated(text: str, digits: str) -> Node:
    whole, _, fixed = text.partition(".")
    shift = 10 ** len(fixed)
    value = Fraction(int(whole + fixed or "0"), shift) + Fraction(int(digits), shift * (10 ** len(digits) - 1))
    return Node("number", value=value)


def times(left: Node, right: Node) -> Node:
    """A product; a decimal times a power of ten stays a decimal (scientific notation)."""
    if left.kind == "negate":
        return Node("negate", (times(left.parts[0], right),))
    if left.kind == "number" and left.unit_in_last_place is not None and right.kind == "power":
        base, exponent = right.parts
        sign = -1 if exponent.kind == "negate" else 1
        inner = exponent.parts[0] if sign < 0 else exponent
        power = inner.value if inner.kind == "number" else None
        if base == number("10") and power is not None and power.denominator == 1 and power <= LARGEST_POWER_OF_TEN:
            return scaled(left, Fraction(10) ** (sign * int(power)))
    return Node("multiply", (*(left.parts if left.kind == "multiply" else (left,)), right))


def scaled(node: Node, factor: Fraction) -> Node:
    if node.kind == "quantity":
        return Node("quantity", (scaled(node.parts[0], factor),), node.text)
    if node.kind == "number" and node.value is not None:
        place = node.unit_in_last_place
        return Node(
            "number",
            value=node.value * factor,
            unit_in_last_place=None if place is None else place * factor,
            digits=node.digits,
        )
    return Node("multiply", (node, Node("number", value=factor)))
