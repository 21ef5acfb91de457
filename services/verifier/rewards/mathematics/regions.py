"""Sets of real numbers as unions of intervals: `x > 3`, `(3, \\infty)`, `x < 1 or x > 2`, the reals without 2."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from services.contracts.questions.formulas.tree import Node

FLIPPED: Final = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
"""Signs as they are when both sides change places."""
Interval = tuple[Node, bool, Node, bool]
"""Lower end, whether it belongs, upper end, whether it belongs."""
_INFINITY: Final = Node("constant", text="inf")
_MINUS_INFINITY: Final = Node("negate", (_INFINITY,))


def regions(reference: Node, answer: Node) -> tuple[list[Interval], list[Interval]] | None:
    """Both as unions of intervals; None where one is none, or where that says nothing new (two pairs of brackets)."""
    if reference.kind == answer.kind == "group":
        return None
    if not {reference.kind, answer.kind} & {"relations", "union", "difference", "symbol"} and "list" not in (
        reference.kind,
        answer.kind,
    ):
        return None
    one, other = _region(reference), _region(answer)
    return None if one is None or other is None else (one, other)


def _region(node: Node) -> list[Interval] | None:
    if node.kind == "symbol":
        return [(_MINUS_INFINITY, False, _INFINITY, False)] if node.text == "mathbb R" else None
    if node.kind == "group" and len(node.parts) == 2:
        low, high = node.parts
        return [(low, node.text[0] == "[", high, node.text[1] == "]")]
    if node.kind == "set":
        return [(part, True, part, True) for part in node.parts]
    if node.kind == "difference":
        return _without_points(*node.parts)
    if node.kind == "union" or (node.kind == "list" and all(part.kind == "relations" for part in node.parts)):
        if len(node.parts) == 2 and (between := _between(*node.parts)) is not None:
            return between
        parts = [_region(part) for part in node.parts]
        return None if any(part is None for part in parts) else [interval for part in parts for interval in part or ()]
    return _region_of_relations(node) if node.kind == "relations" else None


def _without_points(whole: Node, points: Node) -> list[Interval] | None:
    if whole != Node("symbol", text="mathbb R") or points.kind != "set" or len(points.parts) != 1:
        return None
    return _around(points.parts[0])


def _around(point: Node) -> list[Interval]:
    return [(_MINUS_INFINITY, False, point, False), (point, False, _INFINITY, False)]


def _region_of_relations(node: Node) -> list[Interval] | None:
    """`0 <= x < 1`, `x > 3`, `x != 2`, `x in (0, 1)`."""
    signs, members = node.text.split(), node.parts
    if signs == ["in"] and members[0].kind == "symbol":
        return _region(members[1])
    if signs[0] in (">", ">="):
        signs, members = [FLIPPED.get(sign, sign) for sign in signs[::-1]], members[::-1]
    if signs == ["!="] and members[0].kind == "symbol" and not members[1].symbols():
        return _around(members[1])
    if any(sign not in ("<", "<=") for sign in signs):
        return None
    if len(members) == 3 and members[1].kind == "symbol" and not members[0].symbols() | members[2].symbols():
        return [(members[0], signs[0] == "<=", members[2], signs[1] == "<=")]
    if len(members) == 2 and members[0].kind == "symbol" and not members[1].symbols():
        return [(_MINUS_INFINITY, False, members[1], signs[0] == "<=")]
    if len(members) == 2 and members[1].kind == "symbol" and not members[0].symbols():
        return [(members[0], signs[0] == "<=", _INFINITY, False)]
    return None


def _between(first: Node, second: Node) -> list[Interval] | None:
    """`x > 0 and x < 1`: two half-lines that overlap mean what is in both; None for other relations.

    Whether they overlap is read from plain numbers only.
    """
    one, other = _region(first), _region(second)
    if not one or not other or len(one) + len(other) > 2 or first.kind != "relations" or second.kind != "relations":
        return None
    if one[0][2] != _INFINITY:
        one, other = other, one
    (low, low_belongs, high, _), (other_low, _, upper, upper_belongs) = one[0], other[0]
    if high != _INFINITY or other_low != _MINUS_INFINITY:
        return None
    ends = [_plain(low), _plain(upper)]
    if ends[0] is None or ends[1] is None or ends[0] >= ends[1]:
        return None
    return [(low, low_belongs, upper, upper_belongs)]


def _plain(node: Node) -> Fraction | None:
    if node.kind == "negate":
        inner = _plain(node.parts[0])
        return None if inner is None else -inner
    return node.value if node.kind == "number" else None
