"""Group-relative advantages (arXiv 2402.03300 section 4.1.2, arXiv 2503.20783 section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from services.contracts.errors import TurnoutError

STD_EPSILON = 1e-6


def group_advantages(
    rewards: Sequence[float], usable: Sequence[bool], kind: Literal["mean", "mean_std"]
) -> list[float]:
    """A_i = r_i - mean(r), the mean over the usable rollouts of one group.

    `mean_std` also divides by (standard deviation + 1e-6), the sample standard deviation (n - 1). A group whose usable
    rewards are all equal, or that has fewer than two, gets exact zeros; so do unusable rollouts.

    Raises:
        TurnoutError: a usable reward is outside [0, 1] or NaN.
    """
    kept = [reward for reward, ok in zip(rewards, usable, strict=True) if ok]
    if any(not 0.0 <= reward <= 1.0 for reward in kept):
        raise TurnoutError(f"A group's rewards hold a value outside [0, 1]: {kept}.")
    if len(kept) < 2 or max(kept) == min(kept):
        return [0.0] * len(rewards)
    mean = math.fsum(kept) / len(kept)
    scale = 1.0
    if kind == "mean_std":
        scale = math.sqrt(math.fsum((reward - mean) ** 2 for reward in kept) / (len(kept) - 1)) + STD_EPSILON
    return [(reward - mean) / scale if ok else 0.0 for reward, ok in zip(rewards, usable, strict=True)]
