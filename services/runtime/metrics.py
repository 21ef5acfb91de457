"""The metric that several services count, each in its own process."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

TOKENS: Final = Counter("turnout_tokens", "Response tokens handled.", ["service", "run_id"])
