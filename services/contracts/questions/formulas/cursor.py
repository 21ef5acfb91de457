"""A place in a list of tokens, and how the grammar moves it."""

from __future__ import annotations

from typing import Final

from services.contracts.questions.formulas.tree import Unfinished, Unreadable
from services.contracts.questions.formulas.words import Token

DEEPEST: Final = 60
"""Brackets within brackets."""


class Cursor:
    """What all rules of the grammar share."""

    def __init__(self, split: list[Token], tight: bool) -> None:
        self.tokens = [*split, Token("end", "")]
        self.position = 0
        self.depth = 0
        self.bars = 0
        self.in_set = False
        """Whether a colon means `such that`."""
        self.tight = tight
        """Whether what follows a denominator without a sign belongs to it."""
        self.ambiguous = False
        self.joints: list[str] = []
        """What separated the elements that were read last: `and`, `or`, or nothing for a comma."""

    @property
    def here(self) -> Token:
        return self.tokens[self.position]

    def ahead(self, by: int = 1) -> Token:
        return self.tokens[min(self.position + by, len(self.tokens) - 1)]

    def take(self) -> Token:
        token = self.here
        self.position += token.kind != "end"
        return token

    def accept(self, *signs: str) -> bool:
        found = self.here.kind in ("sign", "command") and self.here.text in signs
        self.position += found
        return found

    def expect(self, *signs: str) -> str:
        token = self.here
        if not self.accept(*signs):
            if token.kind == "end":
                raise Unfinished(f"{signs[0]!r} is missing at its end")
            raise Unreadable(f"it has {token.text!r} instead of {signs[0]!r}")
        return token.text

    def raw_index(self) -> str:
        """An index as written: part of a name, so it is not evaluated."""
        if not self.accept("{"):
            return self.take().text
        found: list[str] = []
        depth = 1
        while True:
            token = self.take()
            depth += token.is_sign("{") - token.is_sign("}")
            if token.kind == "end":
                raise Unreadable("the braces of its index do not close")
            if depth == 0:
                return "".join(found)
            found.append(token.text)

    def deeper(self) -> None:
        """Enter brackets. Raises `Unreadable` if they are nested too deeply."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("it is nested too deeply")
