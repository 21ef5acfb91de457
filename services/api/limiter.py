"""How often one client may call."""

from __future__ import annotations

import math
import time

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from services.contracts.errors import ConfigurationError


class RateLimiter:
    """Counts requests by client, in this process's memory: one API process serves a deployment."""

    def __init__(self, text: str) -> None:
        """`text`: limits such as `100/second;3000/minute`; empty for none.

        Raises:
            ConfigurationError: not such a text.
        """
        try:
            self._limits: list[RateLimitItem] = parse_many(text) if text.strip() else []
        except ValueError as error:
            raise ConfigurationError(
                f"TURNOUT_RATE_LIMIT is {text!r}, which names no limits.",
                remedy="Write for example 100/second;3000/minute, or nothing for no limit.",
                field="TURNOUT_RATE_LIMIT",
            ) from error
        self._strategy = FixedWindowRateLimiter(MemoryStorage())

    def wait_seconds(self, client: str) -> int | None:
        """Count one request; None where it may pass, else whole seconds until the next may."""
        over = [limit for limit in self._limits if not self._strategy.hit(limit, client)]
        if not over:
            return None
        reset = max(self._strategy.get_window_stats(limit, client).reset_time for limit in over)
        return max(1, math.ceil(reset - time.time()))
