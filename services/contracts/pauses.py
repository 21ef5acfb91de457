"""The pause before another attempt."""

from __future__ import annotations


def growing_pause(first: float, num_failures: int, most: float) -> float:
    """Seconds to wait after consecutive failures: `first`, doubled with each further one, up to `most`."""
    return min(most, first * 2.0 ** min(num_failures - 1, 60))  # further powers soon fit no float
