"""Evaluates a formula at given values of its symbols: exactly if fractions suffice, otherwise to many digits.

Work is counted, not timed, so the same formula gives the same result on every machine. Anything larger than `MOST_BITS`
or more costly than the budget raises `TooLarge` before it is computed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from typing import Any, Final

import mpmath

from services.contracts.questions.formulas.tree import Node

MOST_BITS: Final = 1 << 17
"""Largest size of an exact number, and largest precision of other numbers, in bits."""
BUDGET: Final = 4_000_000
"""Total size of the results that one comparison may compute, in bits."""
BASE_PRECISION: Final = 300
_LARGEST_EXPONENT: Final = 1_000_000
_LARGEST_FACTORIAL: Final = 10_000
_MOST_BITS_OF_AN_ANGLE: Final = 4000

Value = Any
"""A `Fraction`, or an mpmath real or complex number (infinite ones included)."""


class Undefined(Exception):
    """The formula has no value here: it divides by zero, or is not a number."""


class TooLarge(Exception):
    """The value is too large or too costly to compute."""


class Budget:
    """The remaining budget of one comparison."""

    def __init__(self, bits: int = BUDGET) -> None:
        self.left = bits

    def spend(self, bits: int) -> None:
        self.left -= max(bits, 64)
        if self.left < 0:
            raise TooLarge


class Evaluation:
    """One evaluation: `bits` is the size of the largest exact number met, `scale` the largest addend."""

    def __init__(self, symbols: Mapping[str, Fraction], budget: Budget, precision: int = BASE_PRECISION) -> None:
        self.symbols = symbols
        self.budget = budget
        self.precision = precision
        self.bits = 0
        self.scale = mpmath.mpf(0)

    def of(self, node: Node) -> Value:
        """Evaluate `node`.

        Raises:
            Undefined: it has no value. TooLarge: it exceeds the budget or the size limit.
        """
        with mpmath.mp.workprec(self.precision):
            try:
                return self._of(node)
            except (ZeroDivisionError, ValueError, OverflowError, TypeError, ArithmeticError) as error:
                raise Undefined from error

    def _of(self, node: Node) -> Value:
        if node.kind == "number":
            return self._checked(node.value)
        if node.kind == "symbol":
            return self.symbols[node.text]
        if node.kind == "constant":
            return _CONSTANTS[node.text]()
        if node.kind == "apply":
            return _arbitrary(node.text, [self._of(part) for part in node.parts])
        if node.kind == "digits":
            return Fraction(int(node.text, int(node.value or 10)))
        operation = _OPERATIONS.get(node.kind)
        if operation is not None:
            return self._checked(operation(self, *(self._of(part) for part in node.parts)))
        if node.kind == "call":
            return self._checked(self._call(node.text, [self._of(part) for part in node.parts]))
        if node.kind == "quantity":
            return self._checked(self._quantity(self._of(node.parts[0]), node.text))
        raise Undefined

    def _checked(self, value: Value) -> Value:
        if isinstance(value, Fraction):
            bits = max(value.numerator.bit_length(), value.denominator.bit_length())
            self.budget.spend(bits)
            if bits > MOST_BITS:
                raise TooLarge
            self.bits = max(self.bits, bits)
        else:
            self.budget.spend(4 * self.precision)
            if mpmath.isnan(value):
                raise Undefined
        return value

    # -- operations

    def add(self, *terms: Value) -> Value:
        return reduce(self._plus, terms)

    def multiply(self, *factors: Value) -> Value:
        return reduce(self._times, factors)

    def _plus(self, left: Value, right: Value) -> Value:
        if isinstance(left, Fraction) and isinstance(right, Fraction):
            return self._checked(left + right)
        left, right = real(left), real(right)
        self.scale = max(self.scale, *(abs(term) if mpmath.isfinite(term) else self.scale for term in (left, right)))
        return left + right

    def _times(self, left: Value, right: Value) -> Value:
        if isinstance(left, Fraction) and isinstance(right, Fraction):
            return self._checked(left * right)
        return real(left) * real(right)

    def divide(self, left: Value, right: Value) -> Value:
        if right == 0:
            raise Undefined
        return left / right if isinstance(left, Fraction) and isinstance(right, Fraction) else real(left) / real(right)

    def negate(self, inner: Value) -> Value:
        return -inner

    def power(self, base: Value, exponent: Value) -> Value:
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return self._whole_power(base, int(exponent))
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            return self.root(self._whole_power(base, exponent.numerator), Fraction(exponent.denominator))
        base, exponent = real(base), real(exponent)
        if base == 0 or not mpmath.isfinite(base) or not mpmath.isfinite(exponent):
            raise Undefined
        self._bound(abs(exponent * mpmath.log(base)))
        return mpmath.power(base, exponent)

    def _whole_power(self, base: Value, exponent: int) -> Value:
        if base == 0 and exponent <= 0:
            raise Undefined
        if isinstance(base, Fraction):
            bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
            if bits * abs(exponent) > MOST_BITS:
                raise TooLarge
            return base**exponent
        if abs(exponent) > _LARGEST_EXPONENT:
            raise TooLarge
        return base**exponent

    def root(self, radicand: Value, degree: Value) -> Value:
        """Roots, with odd roots of negative numbers being negative, as at school, and even ones complex."""
        if not isinstance(degree, Fraction) or degree.denominator != 1 or not 0 < degree <= 1000:
            return self.power(radicand, self.divide(Fraction(1), degree))
        number = int(degree)
        if isinstance(radicand, Fraction) and radicand < 0 and number % 2:
            return -self.root(-radicand, degree)
        if isinstance(radicand, Fraction) and radicand >= 0:
            exact = [_whole_root(part, number) for part in (radicand.numerator, radicand.denominator)]
            if exact[0] is not None and exact[1] is not None:
                return Fraction(exact[0], exact[1])
        value = real(radicand)
        if number % 2 and not isinstance(value, mpmath.mpc) and value < 0:
            return -mpmath.root(-value, number)
        return mpmath.root(value, number) if value else value

    def _bound(self, size: Value) -> None:
        if size > _LARGEST_EXPONENT:
            raise TooLarge

    def _quantity(self, value: Value, unit: str) -> Value:
        if unit == "percent^1":
            return self.multiply(value, Fraction(1, 100))
        if unit == "degree^1":
            return self.multiply(value, mpmath.pi / 180)
        return value

    def _call(self, name: str, values: list[Value]) -> Value:
        if name in ("gcd", "lcm", "max", "min"):
            return _of_many(name, values)
        if name == "root":
            return self.root(*values)
        if name == "cbrt":
            return self.root(values[0], Fraction(3))
        if name in ("floor", "ceil", "abs", "sgn"):
            return _of_order(name, values[0])
        if name in ("factorial", "binomial"):
            return self._counting(name, values)
        return self._transcendental(name, *map(real, values))

    def _counting(self, name: str, values: list[Value]) -> Value:
        if any(
            not isinstance(mpmath.mpmathify(real(value)), mpmath.mpf) or abs(value) > _LARGEST_FACTORIAL
            for value in values
        ):
            raise TooLarge
        whole = [
            int(value) for value in values if isinstance(value, Fraction) and value.denominator == 1 and value >= 0
        ]
        if len(whole) == len(values):
            return Fraction(math.factorial(whole[0]) if name == "factorial" else math.comb(*whole))
        return mpmath.factorial(real(values[0])) if name == "factorial" else mpmath.binomial(*map(real, values))

    def _transcendental(self, name: str, value: Value, base: Value = None) -> Value:
        if not mpmath.isfinite(value):
            raise Undefined
        self.budget.spend(8 * self.precision)
        if name in ("ln", "log"):
            if value == 0:
                raise Undefined
            if name == "log":
                return mpmath.log(value) / mpmath.log(10 if base is None else base)
            return mpmath.log(value)
        if name == "exp" or name.endswith("h"):
            self._bound(abs(value))
        elif value and mpmath.mag(value) > _MOST_BITS_OF_AN_ANGLE:
            raise TooLarge
        function: Callable[[Value], Value] = getattr(mpmath, {"arc": "a"}.get(name[:3], name[:3]) + name[3:])
        return function(value)


_OPERATIONS: Final[dict[str, Callable[..., Value]]] = {
    "add": Evaluation.add,
    "multiply": Evaluation.multiply,
    "divide": Evaluation.divide,
    "negate": Evaluation.negate,
    "power": Evaluation.power,
}
_CONSTANTS: Final[dict[str, Callable[[], Value]]] = {
    "pi": lambda: +mpmath.pi,
    "e": lambda: +mpmath.e,
    "i": lambda: mpmath.mpc(0, 1),
    "inf": lambda: mpmath.inf,
}


def real(value: Value) -> Value:
    """`value` as an mpmath number at the working precision."""
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _whole_root(number: int, degree: int) -> int | None:
    """The exact root of a whole number; None if it is not exact."""
    if degree == 2:
        root = math.isqrt(number)
    else:
        low, high = 0, 1 << (number.bit_length() // degree + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= number else (low, middle - 1)
        root = low
    return root if root**degree == number else None


def _of_many(name: str, values: list[Value]) -> Value:
    if name in ("max", "min"):
        return (max if name == "max" else min)(values)
    if any(not isinstance(value, Fraction) or value.denominator != 1 for value in values):
        raise Undefined
    return Fraction((math.gcd if name == "gcd" else math.lcm)(*map(int, values)))


def _of_order(name: str, value: Value) -> Value:
    if name == "abs":
        return abs(value)
    if isinstance(value, mpmath.mpc):
        raise Undefined
    if name == "sgn":
        return Fraction((value > 0) - (value < 0))
    if isinstance(value, Fraction):
        return Fraction(math.floor(value) if name == "floor" else math.ceil(value))
    return mpmath.floor(value) if name == "floor" else mpmath.ceil(value)


def _arbitrary(name: str, values: list[Value]) -> Fraction:
    """The value of an unknown function: arbitrary, but the same for the same arguments."""
    key = name + "|".join(mpmath.nstr(real(value), 30) for value in values)
    return Fraction(zlib.crc32(key.encode()) % 9973 + 1, 997)
