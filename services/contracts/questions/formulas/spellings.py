"""Tables of words and signs as text: one entry between bars, its one spelling first, then the others."""

from __future__ import annotations


def spellings(table: str) -> dict[str, str]:
    """Other spelling -> the one that is used here."""
    entries = [entry.split() for entry in table.replace("\n", "|").split("|") if entry.strip()]
    return {other: one for one, *others in entries for other in others}


def word_set(table: str) -> frozenset[str]:
    """Words between white space."""
    return frozenset(table.split())
