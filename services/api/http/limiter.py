"""Limits each client's rate of requests, and how many it may have in progress."""

from __future__ import annotations

import math
import time
from collections import Counter

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from services.contracts.errors import ConfigurationError


class RateLimiter:
    """Counts requests by client, in this process's memory: a deployment has one API process."""

    def __init__(self, text: str) -> None:
        """`text`: limits such as `100/second;3000/minute`; empty for none.

        Raises:
            ConfigurationError: `text` is not of that form.
        """
        try:
            self._limits: list[RateLimitItem] = parse_many(text) if text.strip() else []
        except ValueError as error:
            raise ConfigurationError(
                f"TURNOUT_RATE_LIMIT is {text!r}, which is not a list of limits.",
                remedy="Write limits such as 100/second;3000/minute, or leave it empty for no limit.",
                field="TURNOUT_RATE_LIMIT",
            ) from error
        self._strategy = FixedWindowRateLimiter(MemoryStorage())

    def wait_seconds(self, client: str, cost: int = 1) -> int | None:
        """Count a request as `cost` requests. Returns None if it may pass, otherwise the whole seconds to wait."""
        over = [limit for limit in self._limits if not self._strategy.hit(limit, client, cost=min(cost, limit.amount))]
        if not over:
            return None
        reset = max(self._strategy.get_window_stats(limit, client).reset_time for limit in over)
        return max(1, math.ceil(reset - time.time()))


class UnderWay:
    """Counts the requests in progress, for each client and in total."""

    def __init__(self, per_client: int, in_all: int) -> None:
        self.per_client = per_client
        self.in_all = in_all
        self._counts: Counter[str] = Counter()

    def is_full_for(self, client: str) -> bool:
        return self._counts.get(client, 0) >= self.per_client

    @property
    def is_full(self) -> bool:
        return self._counts.total() >= self.in_all

    def enter(self, client: str) -> None:
        """Count one more of this client; every `enter` needs a `leave`."""
        self._counts[client] += 1

    def leave(self, client: str) -> None:
        self._counts[client] -= 1
        if not self._counts[client]:
            del self._counts[client]
