"""Levenshtein distance of token sequences, for the choice of a demonstration."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(left: Sequence[int], right: Sequence[int]) -> int:
    """Least number of insertions, deletions and substitutions that turn `left` into `right`.

    Bit-parallel (Hyyrö 2003): a column of the table of distances is two integers with a bit for each token of `left`,
    so two responses of 1000 tokens take a few milliseconds, and two of 8192 about a quarter of a second.
    """
    if not left:
        return len(right)
    places: dict[int, int] = {}
    for position, token in enumerate(left):
        places[token] = places.get(token, 0) | 1 << position
    whole = (1 << len(left)) - 1
    last = 1 << (len(left) - 1)
    rises, falls, distance = whole, 0, len(left)
    for token in right:
        equal = places.get(token, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        steps_up, steps_down = falls | (whole & ~(diagonal | rises)), rises & diagonal
        distance += bool(steps_up & last) - bool(steps_down & last)
        steps_up, steps_down = ((steps_up << 1) | 1) & whole, (steps_down << 1) & whole
        rises, falls = steps_down | (whole & ~(diagonal | steps_up)), steps_up & diagonal
    return distance
