"""Sets of real numbers as unions of intervals: `x > 3`, `(3, \\infty)`, `x < 1 or x > 2`, the reals without 2."""

from __future__ import annotations

from collections.abc import Callable
from functools import cmp_to_key, reduce
from typing import Final, NamedTuple

import mpmath

from services.contracts.questions.formulas.tree import Node
from services.verifier.rewards.mathematics.values import BASE_PRECISION, Value, real

FLIPPED: Final = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
"""Signs as they are when both sides change places."""
_INFINITY: Final = Node("constant", text="inf")
_MINUS_INFINITY: Final = Node("negate", (_INFINITY,))
_MOST_INTERVALS: Final = 32
_REALS: Final = Node("symbol", text="mathbb R")


class Interval(NamedTuple):
    """An interval and which of its ends belong to it."""

    low: Node
    low_belongs: bool
    high: Node
    high_belongs: bool


Region = list[Interval]
"""What is in any of them."""
Valued = Callable[[Node], Value]
"""The real value of an end. Raises `Undefined` for one that has none."""


def regions(reference: Node, answer: Node, valued: Valued) -> tuple[Region, Region] | None:
    """Both as unions of intervals that do not touch, from low to high.

    None where one is none, where they are about different variables, or where that says nothing new (two pairs of
    brackets). Raises `Undefined` where the order of the ends is not known.
    """
    kinds = {reference.kind, answer.kind}
    if not kinds & {"relations", "union", "difference", "symbol", "list"} and not _that(reference, answer):
        return None
    names = _name(reference), _name(answer)
    if None not in names and names[0] != names[1]:
        return None
    reader = _Reader(valued)
    one = reader.region(reference)
    other = None if one is None else reader.region(answer, listed=_is_region_only(reference))
    if one is None or other is None or max(len(one), len(other)) > _MOST_INTERVALS:
        return None
    return reader.joined(one), reader.joined(other)


def condition(node: Node) -> Node:
    """What the elements of a set such as {x : x > 3} have in common; any other node as it is."""
    return node.parts[0] if _that(node) else node


def _that(*nodes: Node) -> bool:
    return any(node.kind == "set" and node.text == "that" for node in nodes)


def _is_region_only(node: Node) -> bool:
    """Whether what is compared with `node` must be a region, so that (1, 2), (3, 4) are intervals and not points."""
    return node.kind in ("relations", "union") or (
        node.kind == "list" and all(part.kind == "relations" for part in node.parts)
    )


def _name(node: Node) -> str | None:
    """The variable that relations are about. The one of {x : x > 3} is bound: any other says the same."""
    if node.kind == "relations":
        return next((part.text for part in node.parts if part.kind == "symbol" and part != _REALS), None)
    return next(filter(None, map(_name, node.parts)), None) if node.kind in ("list", "union") else None


class _Reader:
    def __init__(self, valued: Valued) -> None:
        self.valued = valued

    def region(self, node: Node, listed: bool = False) -> Region | None:
        """`node` as a region; with `listed` also several intervals without a sign of union."""
        if node.kind == "symbol":
            return [Interval(_MINUS_INFINITY, False, _INFINITY, False)] if node == _REALS else None
        if node.kind == "group" and len(node.parts) == 2:
            low, high = node.parts
            return [Interval(low, node.text[0] == "[", high, node.text[1] == "]")]
        if _that(node):
            return self.region(node.parts[0])
        if node.kind == "set":
            return [Interval(part, True, part, True) for part in node.parts]
        if node.kind == "difference":
            return self._without_points(*node.parts)
        if node.kind == "union" or (
            listed and node.kind == "list" and all(part.kind == "group" for part in node.parts)
        ):
            parts = [self.region(part) for part in node.parts]
            return None if None in parts else [interval for part in parts for interval in part or ()]
        if node.kind == "list" and all(part.kind in ("relations", "list") for part in node.parts):
            return self._region_of_list(node)
        if node.kind == "list" and node.parts[0].kind == "relations" and node.parts[0].text == "!=":
            return self._without_all(*node.parts)
        return self._region_of_relations(node) if node.kind == "relations" else None

    def _without_all(self, first: Node, *others: Node) -> Region | None:
        """`x != 1, 2`."""
        inside = self.region(first)
        if inside is None or len(others) > _MOST_INTERVALS or any(other.symbols() for other in others):
            return None
        return reduce(self._in_both, map(_around, others), inside)

    def _without_points(self, whole: Node, points: Node) -> Region | None:
        inside = self.region(whole)
        if inside is None or points.kind != "set" or not 0 < len(points.parts) <= _MOST_INTERVALS or points.text:
            return None
        return reduce(self._in_both, map(_around, points.parts), inside)

    def _region_of_list(self, node: Node) -> Region | None:
        """Relations with `and`, `or` or commas between them, all about one variable."""
        if len(node.parts) > _MOST_INTERVALS or len(set(map(_name, node.parts))) > 1:
            return None
        found = [self.region(part) for part in node.parts]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found) or all(part.text == "=" for part in node.parts):
            return None
        union = [interval for part in parts for interval in part]
        signs = {sign for part in node.parts for sign in part.text.split()}
        if "!=" in signs:
            return reduce(self._in_both, parts)
        if node.text == "or" or "=" in signs or (node.text != "and" and not _are_half_lines(parts)):
            return union
        return reduce(self._in_both, parts) or union  # `x < 1 and x > 2` can only mean what is in either

    def _region_of_relations(self, node: Node) -> Region | None:
        """`0 <= x < 1`, `x > 3`, `x != 2`, `x = 2`, `x in (0, 1)`."""
        signs, members = node.text.split(), node.parts
        if signs == ["in"] and members[0].kind == "symbol":
            return self.region(members[1])
        if signs[0] in (">", ">="):
            signs, members = [FLIPPED.get(sign, sign) for sign in signs[::-1]], members[::-1]
        if signs in (["!="], ["="]) and members[0].kind == "symbol" and not members[1].symbols():
            point = members[1]
            return _around(point) if signs == ["!="] else [Interval(point, True, point, True)]
        if any(sign not in ("<", "<=") for sign in signs):
            return None
        if len(members) == 3 and members[1].kind == "symbol" and not members[0].symbols() | members[2].symbols():
            return [Interval(members[0], signs[0] == "<=", members[2], signs[1] == "<=")]
        if len(members) == 2 and members[0].kind == "symbol" and not members[1].symbols():
            return [Interval(_MINUS_INFINITY, False, members[1], signs[0] == "<=")]
        if len(members) == 2 and members[1].kind == "symbol" and not members[0].symbols():
            return [Interval(members[0], signs[0] == "<=", _INFINITY, False)]
        return None

    def _in_both(self, one: Region, other: Region) -> Region:
        found = []
        for x in one:
            for y in other:
                low, low_belongs, _, _ = max(x, y, key=cmp_to_key(self._compare_lows))
                _, _, high, high_belongs = min(x, y, key=cmp_to_key(self._compare_highs))
                found.append(Interval(low, low_belongs, high, high_belongs))
        return [interval for interval in found if self._has_points(interval)]

    def joined(self, region: Region) -> Region:
        """The same set, in order, with intervals that overlap or touch as one."""
        found: Region = []
        for interval in sorted(region, key=cmp_to_key(self._compare_lows)):
            if found and self._reaches(found[-1], interval):
                first, second = found[-1], interval
                _, _, high, high_belongs = max(first, second, key=cmp_to_key(self._compare_highs))
                found[-1] = Interval(first.low, first.low_belongs, high, high_belongs)
            else:
                found.append(interval)
        return found

    def _reaches(self, first: Interval, second: Interval) -> bool:
        gap = self._compare(second.low, first.high)
        return gap < 0 or (gap == 0 and (first.high_belongs or second.low_belongs))

    def _has_points(self, interval: Interval) -> bool:
        width = self._compare(interval.high, interval.low)
        return width > 0 or (width == 0 and interval.low_belongs and interval.high_belongs)

    def _compare_lows(self, one: Interval, other: Interval) -> int:
        return self._compare(one.low, other.low) or other.low_belongs - one.low_belongs

    def _compare_highs(self, one: Interval, other: Interval) -> int:
        return self._compare(one.high, other.high) or one.high_belongs - other.high_belongs

    def _compare(self, one: Node, other: Node) -> int:
        """-1, 0 or 1: the order of two ends."""
        if one == other:
            return 0
        with mpmath.mp.workprec(BASE_PRECISION):
            left, right = (real(self.valued(node)) for node in (one, other))
            if mpmath.isfinite(left) and mpmath.isfinite(right) and mpmath.almosteq(left, right, 2.0**-240, 0):
                return 0
            return int(left > right) - int(left < right)


def _around(point: Node) -> Region:
    return [Interval(_MINUS_INFINITY, False, point, False), Interval(point, False, _INFINITY, False)]


def _are_half_lines(parts: list[Region]) -> bool:
    """Whether there are two regions, one without a lower end and one without an upper end."""
    if len(parts) != 2 or any(len(part) != 1 for part in parts):
        return False
    bounded = {(part[0].low == _MINUS_INFINITY, part[0].high == _INFINITY) for part in parts}
    return bounded == {(True, False), (False, True)}
