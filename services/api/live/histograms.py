"""Accumulates histograms that were counted elsewhere, in Prometheus' form."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from services.contracts.events import Histogram


@dataclass(slots=True)
class RunningHistogram:
    """Sum of histograms with the same edges. Different edges reset it, as a restart resets a counter."""

    edges: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def add(self, histogram: Histogram) -> None:
        """Add one step's counts. A histogram whose lengths do not match is ignored."""
        if len(histogram.counts) != len(histogram.edges) - 1:
            return
        if histogram.edges != self.edges:
            self.edges, self.counts, self.total = list(histogram.edges), [0] * len(histogram.counts), 0.0
        self.counts = [old + new for old, new in zip(self.counts, histogram.counts, strict=True)]
        self.total += histogram.total

    def observe(self, value: float) -> None:
        """Count one value. The histogram must have edges."""
        index = min(max(bisect_left(self.edges, value) - 1, 0), len(self.counts) - 1)
        self.counts[index] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, cumulative count) pairs; the last bucket also holds larger values, so its bound is +Inf."""
        out: list[tuple[str, float]] = []
        cumulative = 0
        for index, count in enumerate(self.counts):
            cumulative += count
            last = index == len(self.counts) - 1
            out.append(("+Inf" if last else str(float(self.edges[index + 1])), float(cumulative)))
        return out or [("+Inf", 0.0)]


PUSH_EDGES = [0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1e9]


def push_histogram() -> RunningHistogram:
    """An empty histogram of weight-push seconds."""
    return RunningHistogram(list(PUSH_EDGES), [0] * (len(PUSH_EDGES) - 1))
