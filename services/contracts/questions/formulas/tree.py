"""What was read: a tree of `Node`s, and the error that says why nothing was."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


class Unreadable(Exception):
    """The text is not a formula that the reader knows; the message says why."""


class Unfinished(Unreadable):
    """The text ends too early."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, name or number.

    Kinds: `number` (value), `symbol` and `words` (text), `constant` (text: pi, e, i, inf), `add`, `multiply`, `divide`,
    `power`, `negate`, `plusminus` (text: pm, mp), `call` (text: a known function), `apply` (text: an unknown one),
    `digits` (text: digits; value: base), `list` (text: the `and` or `or` between relations), `set` (text:
    `that` if its part is a condition), `group` (text: its two brackets), `relations` (text: the signs between its
    parts), `ratio` (text: as written), `table` (text: its environment; parts: rows, each a `list`),
    `union`, `intersection`, `difference`, `dots`, `quantity` (text: the unit).
    """

    kind: str
    parts: tuple[Node, ...] = ()
    text: str = ""
    value: Fraction | None = None
    unit_in_last_place: Fraction | None = None
    """Of numbers written with a decimal point: what one in the last written place is worth."""
    digits: int = 0
    """Of such numbers: significant digits, trailing zeros aside."""

    def symbols(self) -> frozenset[str]:
        """Names that stand for anything: of variables, and of unknown functions."""
        own = frozenset([self.text]) if self.kind in ("symbol", "apply") else frozenset()
        return own.union(*(part.symbols() for part in self.parts))

    def has(self, *kinds: str) -> bool:
        return self.kind in kinds or any(part.has(*kinds) for part in self.parts)
