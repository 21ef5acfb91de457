"""Which source a prompt comes from: shares that are exact over time, as a pure function of the sequence number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from math import gcd, lcm
from typing import Final

LONGEST_PERIOD: Final = 100_000
"""Prompts after which the order of the sources repeats, at most."""


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The weights, as written in decimals, as the smallest whole numbers of the same proportions."""
    parts = [Fraction(repr(weight)) for weight in weights]
    common = lcm(*(part.denominator for part in parts))
    whole = [int(part * common) for part in parts]
    divisor = reduce(gcd, whole)
    return [number // divisor for number in whole]


def period_of(weights: Sequence[float]) -> int:
    """Number of prompts after which the order of the sources repeats."""
    return sum(whole_weights(weights))


class Schedule:
    """The order of the sources.

    Of the first n prompts, source s has less than one more or less than n times its share, for every n: among the
    sources that are behind their share, the one that must be next soonest comes next (Pfair scheduling, Baruah et al.
    1996, on one processor). After `period` prompts the order repeats, so a position follows from a division.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._shares = whole_weights(weights)
        self.period = sum(self._shares)
        counts = [0] * len(self._shares)
        self._order: list[tuple[int, int]] = []
        for position in range(self.period):
            behind = (n for n, share in enumerate(self._shares) if counts[n] * self.period < (position + 1) * share)
            chosen = min(behind, key=lambda n: -(-(counts[n] + 1) * self.period // self._shares[n]))
            self._order.append((chosen, counts[chosen]))
            counts[chosen] += 1

    def at(self, sequence: int) -> tuple[int, int]:
        """The source of prompt `sequence` (from 0), and how many prompts that source had before."""
        periods, position = divmod(sequence, self.period)
        source, before = self._order[position]
        return source, periods * self._shares[source] + before
