"""Whether two parsed formulas are equal. docs/rewards.md has the rules as a table.

Numbers are compared exactly if both are fractions, otherwise to at least 70 digits relative to their size. Formulas
with symbols are equal if they agree at points drawn from a fixed seed: different ones agree at a random point with
probability near 0 (Schwartz and Zippel).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

import mpmath

from services.contracts.questions.formulas import units
from services.contracts.questions.formulas.tree import Node
from services.verifier.rewards.mathematics.regions import FLIPPED, condition, regions
from services.verifier.rewards.mathematics.values import (
    BASE_PRECISION,
    Budget,
    Evaluation,
    TooLarge,
    Undefined,
    Value,
    real,
)

FEWEST_DIGITS: Final = 6
"""Number of significant digits from which a decimal may represent the value that it is rounded from."""
_MOST_EXTRA_BITS: Final = 20_000
_MOST_POINTS: Final = 30
_ENOUGH_POINTS: Final = 8
_FEWEST_POINTS: Final = 3
_MOST_ELEMENTS: Final = 64
_CLOCK: Final = re.compile(r"\d{1,2}:[0-5]\d(:[0-5]\d)?")
_VALUE_SIGNS: Final = ("=", "in", "~")


def equal(reference: Sequence[Node], answer: Sequence[Node]) -> bool:
    """Whether any reading of the answer equals the first reading of the reference, or both are written alike."""
    try:
        return tuple(reference) == tuple(answer) or _Comparison().whole(reference[0], answer)
    except (TooLarge, RecursionError):
        return False


def _folded(node: Node) -> Node | None:
    """`node` with its symbols in lower case; None if that would merge two symbols."""
    symbols = node.symbols()
    if len({name.lower() for name in symbols}) < len(symbols):
        return None
    return _renamed(node)


def _renamed(node: Node) -> Node:
    text = node.text.lower() if node.kind in ("symbol", "apply") else node.text
    return replace(node, text=text, parts=tuple(map(_renamed, node.parts)))


class _Comparison:
    """One comparison, whose parts share a budget."""

    def __init__(self) -> None:
        self.budget = Budget()

    def whole(self, reference: Node, answers: Sequence[Node]) -> bool:
        """Whether all readings of an answer equal the reference, as written or with symbols in lower case."""
        if all(self.same(reference, answer) for answer in answers):
            return True
        folded, *others = (_folded(node) for node in (reference, *answers))
        return folded is not None and all(other is not None and self.same(folded, other) for other in others)

    def same(self, reference: Node, answer: Node) -> bool:
        if reference == answer:
            return True
        reference, answer = (_with_both_signs(node) for node in (reference, answer))
        conditions = condition(reference), condition(answer)
        if conditions != (reference, answer):
            return bool(self._same_regions(reference, answer)) or self.same(*conditions)
        if "relations" in (reference.kind, answer.kind):
            return self._same_relations(reference, answer)
        if "quantity" in (reference.kind, answer.kind):
            return self._same_quantities(reference, answer)
        if (found := self._same_regions(reference, answer)) is not None:
            return found
        for kinds, rule in self._rules():
            if reference.kind in kinds or answer.kind in kinds:
                return rule(reference, answer)
        return self.same_values(reference, answer)

    def _rules(self) -> tuple[tuple[tuple[str, ...], Callable[[Node, Node], bool]], ...]:
        return (
            (("words",), _same_words),
            (("table",), self._same_tables),
            (("ratio",), self._same_ratios),
            (("digits",), _same_digits),
            (("list", "set", "group"), self._same_collections),
            (("union", "intersection", "difference"), self._same_operations),
        )

    # -- relations

    def _same_relations(self, reference: Node, answer: Node) -> bool:
        (name, value), (other_name, other) = (self._assignment(node) for node in (reference, answer))
        if answer.kind != "relations":
            if value is not None and (name is not None or not reference.symbols()):
                return self.same(value, answer)
            return bool(self._same_regions(reference, answer))
        if reference.kind != "relations":
            if other is not None and _is_asked_for(answer.parts[0]):
                return self.same(reference, other)
            return bool(self._same_regions(reference, answer))
        if name is not None and value is not None and name == other_name and other is not None:
            return self.same(value, other)
        if not reference.symbols():
            unnamed = name is None or other_name is None
            return unnamed and value is not None and other is not None and self.same(value, other)
        if self._same_regions(reference, answer):
            return True
        return self._same_equations(reference, answer)

    def _assignment(self, node: Node) -> tuple[Node | None, Node | None]:
        """Name and value of `x = 5`, `x = 2 + 3 = 5` and so on; no name for other equations, and None for inequalities.

        A value counts rather than the approximation that follows it. Numbers in between must equal the value.
        """
        if node.kind != "relations":
            return None, None
        signs, members = node.text.split(), list(node.parts)
        if any(sign not in _VALUE_SIGNS for sign in signs):
            return None, None
        if len(members) == 2 and not members[0].symbols() and not _is_name(members[0]) and _is_name(members[1]):
            members.reverse()  # 5 = x
        named = _is_name(members[0])
        first_approximate = signs.index("~") if "~" in signs else len(signs)
        if first_approximate >= named:
            members, approximate = members[: first_approximate + 1], members[first_approximate + 1 :]
            if not all(self._approximates(member, members[-1]) for member in approximate):
                return None, None
        value = members[-1]
        numbers = [member for member in members[:-1] if not member.symbols() and not _is_name(member)]
        if not all(self.same(member, value) for member in numbers):
            return None, None
        return (members[0] if named else None), value

    def _approximates(self, one: Node, value: Node) -> bool:
        """Whether `one` may follow `value` and an approximation sign."""
        if one.symbols() or value.symbols():
            return False
        try:
            found, exact = (Evaluation({}, self.budget).of(node) for node in (one, value))
        except Undefined:
            return False
        place = one.unit_in_last_place or Fraction(0)
        return bool(abs(real(found) - real(exact)) <= max(real(place), abs(real(exact)) / 20))

    def _same_equations(self, reference: Node, answer: Node) -> bool:
        """Relations that differ by a factor: 2x = 4y and x - 2y = 0, x < 3 and 3 > x."""
        first, second = reference.text.split(), answer.text.split()
        if len(first) != len(second):
            return False
        if len(first) > 1:
            turned = Node("relations", answer.parts[::-1], " ".join(FLIPPED.get(sign, sign) for sign in second[::-1]))
            return any(
                first == other.text.split() and all(map(self.same, reference.parts, other.parts))
                for other in (answer, turned)
            )
        if not {*first, *second} <= FLIPPED.keys():
            return first == second and all(map(self.same, reference.parts, answer.parts))
        ratio = self._ratio(
            *(Node("add", (one.parts[0], Node("negate", (one.parts[1],)))) for one in (reference, answer))
        )
        return ratio != 0 and second[0] == (first[0] if ratio > 0 else FLIPPED[first[0]])

    def _ratio(self, reference: Node, answer: Node) -> int:
        """The sign of the constant factor by which two formulas differ; 0 if there is none."""
        if reference.symbols() != answer.symbols():
            return 0
        ratios: list[Value] = []
        for one, other, precision, scale in self._points(reference, answer):
            with mpmath.mp.workprec(precision):
                if _near(one, Fraction(0), precision, scale) or _near(other, Fraction(0), precision, scale):
                    continue
                ratio = (
                    one / other
                    if isinstance(one, Fraction) and isinstance(other, Fraction)
                    else real(one) / real(other)
                )
                if isinstance(ratio, mpmath.mpc) or (ratios and not _near(ratios[0], ratio, precision, mpmath.mpf(0))):
                    return 0
            ratios.append(ratio)
        return 0 if len(ratios) < _FEWEST_POINTS else 1 if ratios[0] > 0 else -1

    # -- numbers with units

    def _same_quantities(self, reference: Node, answer: Node) -> bool:
        (value, unit), (other, other_unit) = (_split_unit(node) for node in (reference, answer))
        percent = f"{units.PERCENT}^1"
        if percent in (unit, other_unit) and unit != other_unit:
            if unit == percent:
                return not other_unit and (self.same(value, other) or self.same_values(reference, other))
            if unit:
                return False
            return self.same_values(value, answer) or (self._is_above_one(value) and self.same(value, other))
        if {unit, other_unit} == {"degree^1", "radian^1"}:
            turned = [
                node if one == "degree^1" else inner
                for node, inner, one in ((reference, value, unit), (answer, other, other_unit))
            ]
            return self.same_values(*turned)
        return units.agree(unit, other_unit) and self.same(value, other)

    def _is_above_one(self, node: Node) -> bool:
        try:
            value = Evaluation({}, self.budget).of(node)
        except (Undefined, KeyError):
            return False
        return not isinstance(value, mpmath.mpc) and abs(value) > 1

    # -- collections

    def _same_collections(self, reference: Node, answer: Node) -> bool:
        if "group" in (reference.kind, answer.kind):
            return self._same_tuples(reference, answer)
        one, other = (list(node.parts) if node.kind in ("list", "set") else [node] for node in (reference, answer))
        if any(part.kind == "dots" for part in (*one, *other)) or _names_then_values(one, other):
            return len(one) == len(other) and all(map(self.same, one, other))
        if max(len(one), len(other)) > _MOST_ELEMENTS:
            return False
        return all(any(self.same(x, y) for y in other) for x in one) and all(
            any(self.same(x, y) for x in one) for y in other
        )

    def _same_tuples(self, reference: Node, answer: Node) -> bool:
        brackets = [node.text for node in (reference, answer) if node.kind == "group"]
        if {reference.kind, answer.kind} not in ({"group"}, {"group", "list"}):
            return False
        if len(reference.parts) != len(answer.parts) or (len(brackets) == 1 and brackets[0] != "()"):
            return False
        if len(reference.parts) == 2 and len(set(brackets)) > 1:
            return False
        return all(map(self.same, _by_name(reference), _by_name(answer)))

    def _same_tables(self, reference: Node, answer: Node) -> bool:
        reference, answer = _as_table(reference, answer), _as_table(answer, reference)
        if reference.kind != answer.kind or reference.text != answer.text or len(reference.parts) != len(answer.parts):
            return False
        return all(
            len(row.parts) == len(other.parts) and all(map(self.same, row.parts, other.parts))
            for row, other in zip(reference.parts, answer.parts, strict=True)
        )

    def _same_ratios(self, reference: Node, answer: Node) -> bool:
        """3:4 equals 6:8 and 3/4, but times of day (two digits after the colon) are compared part by part."""
        if reference.kind == answer.kind == "ratio":
            if len(reference.parts) != len(answer.parts):
                return False
            if _CLOCK.fullmatch(reference.text):
                return all(map(self.same, reference.parts, answer.parts))
            return all(
                self.same_values(Node("multiply", (x, answer.parts[0])), Node("multiply", (y, reference.parts[0])))
                for x, y in zip(reference.parts, answer.parts, strict=True)
            )
        ratio, other = (reference, answer) if reference.kind == "ratio" else (answer, reference)
        if len(ratio.parts) != 2 or (ratio is reference and _CLOCK.fullmatch(ratio.text)):
            return False
        return self.same_values(Node("divide", ratio.parts), other)

    def _same_operations(self, reference: Node, answer: Node) -> bool:
        if reference.kind != answer.kind:
            return False
        if reference.kind == "difference":
            return all(map(self.same, reference.parts, answer.parts))
        one, other = (_operands(node, node.kind) for node in (reference, answer))
        return self._same_collections(Node("list", tuple(one)), Node("list", tuple(other)))

    def _same_regions(self, reference: Node, answer: Node) -> bool | None:
        """Whether both are the same set of real numbers; None if one cannot be read as a set."""
        try:
            both = regions(reference, answer, self._position)
        except Undefined:
            return False
        if both is None:
            return None
        return len(both[0]) == len(both[1]) and all(
            x[1::2] == y[1::2] and self.same(x.low, y.low) and self.same(x.high, y.high)
            for x, y in zip(*both, strict=True)
        )

    def _position(self, node: Node) -> Value:
        if node.symbols():
            raise Undefined
        value = Evaluation({}, self.budget).of(node)
        if isinstance(value, mpmath.mpc):
            raise Undefined
        return value

    # -- values

    def same_values(self, reference: Node, answer: Node) -> bool:
        """Whether two formulas have the same value, everywhere where both have one."""
        if reference.symbols() or answer.symbols():
            return self._same_functions(reference, answer)
        try:
            one, other, precision, scale = self._evaluated(reference, answer, {})
        except Undefined:
            return False
        return _near(one, other, precision, scale) or _is_rounded(reference, answer, one, other, precision)

    def _same_functions(self, reference: Node, answer: Node) -> bool:
        real_points = complex_points = 0
        for one, other, precision, scale in self._points(reference, answer):
            is_complex = any(
                isinstance(value, mpmath.mpc) and abs(value.imag) > abs(value) * 2.0**-60 for value in (one, other)
            )
            if not is_complex and not _near(one, other, precision, scale):
                return False
            real_points += not is_complex
            complex_points += is_complex and _near(one, other, precision, scale)
            if (
                is_complex
                and reference.has("constant")
                and not _near(one, other, precision, scale)
                and _mentions_i(reference, answer)
            ):
                return False
            if real_points == _ENOUGH_POINTS:
                return True
        return real_points >= _FEWEST_POINTS or real_points + complex_points >= _ENOUGH_POINTS

    def _points(self, one: Node, other: Node) -> Iterator[tuple[Value, Value, int, Value]]:
        """Values of both formulas at points where both have one."""
        names = sorted(one.symbols() | other.symbols())
        draw = random.Random(0)
        for number in range(_MOST_POINTS):
            try:
                yield self._evaluated(one, other, {name: _coordinate(draw, number) for name in names})
            except Undefined:
                continue

    def _evaluated(self, one: Node, other: Node, at: dict[str, Fraction]) -> tuple[Value, Value, int, Value]:
        """Both values, the precision that they have, and the largest number that was added on the way."""
        first = Evaluation(at, self.budget), Evaluation(at, self.budget)
        values = [evaluation.of(node) for evaluation, node in zip(first, (one, other), strict=True)]
        if all(isinstance(value, Fraction) for value in values):
            return values[0], values[1], BASE_PRECISION, mpmath.mpf(0)
        extra = sum(evaluation.bits for evaluation in first)
        if extra > _MOST_EXTRA_BITS:
            raise TooLarge
        precision = BASE_PRECISION + extra
        second = Evaluation(at, self.budget, precision), Evaluation(at, self.budget, precision)
        values = [evaluation.of(node) for evaluation, node in zip(second, (one, other), strict=True)]
        return values[0], values[1], precision, max(evaluation.scale for evaluation in second)


def _near(one: Value, other: Value, precision: int, scale: Value) -> bool:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    with mpmath.mp.workprec(precision):
        one, other = real(one), real(other)
        if not (mpmath.isfinite(one) and mpmath.isfinite(other)):
            return bool(one == other)
        return bool(abs(one - other) <= mpmath.ldexp(max(abs(one), abs(other), scale), 60 - precision))


def _is_rounded(reference: Node, answer: Node, one: Value, other: Value, precision: int) -> bool:
    """Whether one side is a decimal with enough digits, correctly rounded from the other."""
    for literal, value, exact in ((reference, one, other), (answer, other, one)):
        inner = literal.parts[0] if literal.kind == "negate" else literal
        place = inner.unit_in_last_place
        if (
            place is None
            or inner.digits < FEWEST_DIGITS
            or isinstance(exact, mpmath.mpc)
            or not mpmath.isfinite(real(exact))
        ):
            continue
        with mpmath.mp.workprec(precision):
            if abs(real(value) - real(exact)) <= real(place / 2):
                return True
    return False


def _coordinate(draw: random.Random, number: int) -> Fraction:
    """A coordinate of point `number`, alternating between fractions and whole numbers of both signs."""
    small, large = Fraction(draw.randint(1, 96), 97), Fraction(draw.randint(100, 900), 89)
    choices = (large, -large, small, -small, Fraction(draw.randint(2, 12)), draw.choice((large, -large, small, -small)))
    return choices[number % len(choices)]


def _mentions_i(*nodes: Node) -> bool:
    return any((node.kind == "constant" and node.text == "i") or _mentions_i(*node.parts) for node in nodes)


def _same_words(reference: Node, answer: Node) -> bool:
    one, other = (_as_words(node) for node in (reference, answer))
    return one is not None and one == other


def _as_words(node: Node) -> str | None:
    if node.kind in ("words", "symbol"):
        return node.text.lower().removeprefix("text ")
    return node.text if node.kind == "constant" and node.text in ("e", "i") else None


def _same_digits(reference: Node, answer: Node) -> bool:
    """Digits in a base. An answer may omit the base that the reference names; another base is another number."""
    if reference.kind == answer.kind:
        return reference.text.lstrip("0") == answer.text.lstrip("0") and reference.value == answer.value
    digits, other = (reference, answer) if reference.kind == "digits" else (answer, reference)
    if other.kind != "number" or other.value is None or other.value.denominator != 1:
        return False
    if digits is reference:
        return digits.text.lstrip("0") == str(other.value)
    return int(digits.text, int(digits.value or 10)) == other.value


def _split_unit(node: Node) -> tuple[Node, str]:
    """Value and unit; a minus sign before a quantity belongs to its value."""
    if node.kind == "negate" and node.parts[0].kind == "quantity":
        inner, unit = _split_unit(node.parts[0])
        return Node("negate", (inner,)), unit
    return (node.parts[0], node.text) if node.kind == "quantity" else (node, "")


def _is_name(node: Node) -> bool:
    """Whether a formula is only a name for what it equals: x, f(2), xy, |AB|, `Area`."""
    if node.kind in ("symbol", "words", "apply"):
        return True
    return (
        node.kind in ("multiply", "divide", "call", "group")
        and node.text in ("", "abs", "()")
        and all(map(_is_name, node.parts))
    )


def _is_asked_for(node: Node) -> bool:
    """Whether the left side of `= 7` may be what a question asks for: m + n, a^2 + b^2, 3 + 4; but not 2x - y."""
    if node.kind == "power":
        return _is_asked_for(node.parts[0]) and not node.parts[1].symbols()
    if node.kind in ("add", "multiply", "divide", "negate", "call", "group"):
        return not node.symbols() or all(part.symbols() and _is_asked_for(part) for part in node.parts)
    return node.kind in ("symbol", "words", "apply") or (not node.symbols() and not node.has("dots", "plusminus"))


def _as_table(node: Node, other: Node) -> Node:
    """[[1, 2], [3, 4]] as a matrix, and (1, 2) as the vector that `other` is; any other node as it is."""
    if node.kind != "group" or other.kind != "table" or other.text != "matrix":
        return node
    if node.text == "[]" and all(part.kind == "group" and part.text == "[]" for part in node.parts):
        return Node("table", tuple(Node("list", part.parts) for part in node.parts), "matrix")
    if node.text != "()":
        return node
    is_row = len(other.parts) == 1
    rows = [node.parts] if is_row else [(part,) for part in node.parts]
    return Node("table", tuple(Node("list", row) for row in rows), "matrix")


def _by_name(node: Node) -> tuple[Node, ...]:
    """The parts of a tuple; of `y = 4, x = 3` in the order of the names."""
    if node.kind != "list" or any(part.kind != "relations" or part.parts[0].kind != "symbol" for part in node.parts):
        return node.parts
    return tuple(sorted(node.parts, key=lambda part: part.parts[0].text))


def _names_then_values(one: list[Node], other: list[Node]) -> bool:
    """Whether one side gives several values different names and the other gives none, so that the order counts."""
    named = [[part.kind == "relations" for part in side] for side in (one, other)]
    if not (len(one) == len(other) > 1 and any(map(all, named)) and not all(map(any, named))):
        return False
    side = one if all(named[0]) else other
    return len({part.parts[0] for part in side}) > 1


def _with_both_signs(node: Node) -> Node:
    """`node` with plus-minus signs expanded to a list of both values."""
    if node.kind == "list" and node.has("plusminus"):
        parts = [inner for part in node.parts for inner in _list_of(_with_both_signs(part))]
        return replace(node, parts=tuple(parts))
    if not node.has("plusminus"):
        return node
    return Node("list", (_signed(node, 1), _signed(node, -1)))


def _list_of(node: Node) -> tuple[Node, ...]:
    return node.parts if node.kind == "list" else (node,)


def _signed(node: Node, sign: int) -> Node:
    parts = tuple(_signed(part, sign) for part in node.parts)
    if node.kind != "plusminus":
        return replace(node, parts=parts)
    return parts[0] if (node.text == "pm") == (sign > 0) else Node("negate", parts)


def _operands(node: Node, kind: str) -> list[Node]:
    return [inner for part in node.parts for inner in _operands(part, kind)] if node.kind == kind else [node]
