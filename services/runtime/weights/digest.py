"""A digest of weights that any device computes alike, with integer tensor operations only.

Each 8-byte word is added to its position times an odd constant, scrambled by a bijection of 64-bit words (the finalizer
of SplitMix64), and all are summed modulo 2^64. A single differing word is always detected; several, or words in another
order, are missed with a probability of about 2^-64. The digest detects transfer errors but is not cryptographic: anyone
who can choose the bytes can forge it. This module only calls methods of the given tensor, so it does not import torch.
"""

from __future__ import annotations

from typing import Any

_PIECE = 1 << 22
"""Number of words processed at once; bounds the memory for intermediate results."""
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def digest(words: Any) -> str:
    """16 hex digits for a 1-D int64 tensor on any device."""
    total = 0
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE]
        place = piece.new_ones(len(piece)).cumsum(0).add_(start)
        mixed = place.mul_(_GOLDEN).add_(piece)
        mixed ^= (mixed >> 30) & ((1 << 34) - 1)  # the shift is arithmetic; the mask makes it logical
        mixed *= _FIRST
        mixed ^= (mixed >> 27) & ((1 << 37) - 1)
        mixed *= _SECOND
        mixed ^= (mixed >> 31) & ((1 << 33) - 1)
        total += int(mixed.sum())
    return f"{total & ((1 << 64) - 1):016x}"
