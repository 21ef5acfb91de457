"""avg@k, pass@k and their intervals, as pure functions of how many samples of each question are correct.

Intervals are bootstrap percentiles (Efron 1979): questions are drawn with replacement, as many as there are, 2,000
times from a fixed seed, and the interval has 95% of the means. They say how far the number could have come out
otherwise with other questions of the same kind and other samples of them. Samples of one question are never drawn
separately, since they are not independent. A difference is that of the same questions, so its interval is of the
questions' differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from statistics import fmean
from typing import Final, NamedTuple

import numpy as np

RESAMPLES: Final = 2000
SEED: Final = 0
SHARE: Final = 0.95
DRAWS_AT_ONCE: Final = 1_000_000
"""Bounds the memory that a large set takes."""


class Counts(NamedTuple):
    """One question."""

    samples: int
    """Samples that could be judged, n."""
    correct: int
    """Correct ones among them, c."""


class Estimate(NamedTuple):
    """A mean over questions with its interval."""

    value: float
    low: float | None
    """Lower end of the 95% interval; None with fewer than two questions."""
    high: float | None


def accuracies(counts: Sequence[tuple[int, int]]) -> list[float]:
    """The share of correct samples of each question that has any."""
    return [correct / samples for samples, correct in counts if samples]


def pass_shares(counts: Sequence[tuple[int, int]], k: int) -> list[float]:
    """For each question, the probability that at least one of k of its samples is correct.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374, section 2.1) needs n >= k samples. Questions
    that lost samples to faults are left out, because those might have solved them. If every question lost
    samples, each counts with those that it has, which underestimates the share.
    """
    counts = [item for item in counts if item[0]]
    whole = [item for item in counts if item[0] >= k]
    return [1.0 - comb(n - c, min(n, k)) / comb(n, min(n, k)) for n, c in whole or counts]


def pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """The share of questions that at least one of k samples solves; 0 without questions. See `pass_shares`."""
    shares = pass_shares(counts, k)
    return fmean(shares) if shares else 0.0


def estimate(values: Sequence[float], seed: int = SEED) -> Estimate:
    """The mean of one value a question, with the interval; 0 without questions."""
    mean = fmean(values) if values else 0.0
    if len(values) < 2:
        return Estimate(mean, None, None)
    array = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // len(array))
    means: list[float] = []
    while len(means) < RESAMPLES:
        drawn = random.integers(0, len(array), (min(rows, RESAMPLES - len(means)), len(array)))
        means += array[drawn].mean(axis=1).tolist()
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Estimate(mean, float(low), float(high))


def ks_of(num_samples: int) -> list[int]:
    """The k for which pass@k is told: powers of two below the number of samples, and that number."""
    return [*(1 << power for power in range(num_samples.bit_length()) if 1 << power < num_samples), num_samples]
